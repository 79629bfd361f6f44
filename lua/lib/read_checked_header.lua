--@include read_header
-- read_checked_header: the same as read_header, but fails, before the first write, if another key
-- of the session has a wrong type.
local function read_checked_header(session, events, index, session_id, created_us)
  local header, refusal = read_header(session, created_us)
  if header then
    redis.call('ZSCORE', index, session_id)
    redis.call('ZCARD', events)
  end
  return header, refusal
end
