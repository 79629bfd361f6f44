--@include read_header
-- read_checked_header: the same as read_header, but fails, before the first write, if another key
-- of the session has a wrong type.
local function read_checked_header(session, events, index, session_id)
  local version, last_us, deadline_ms = read_header(session)
  if version then
    redis.call('ZSCORE', index, session_id)
    redis.call('ZCARD', events)
  end
  return version, last_us, deadline_ms
end
