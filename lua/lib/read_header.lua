-- read_header: version (as text), last position and deadline of a session; nil if there is none.
-- Reads every key that a write to the session touches, so that a wrong type fails before it.
local function read_header(session, events, index, session_id)
  local header = redis.call('HMGET', session, 'version', 'last_us', 'deadline_ms')
  if not header[1] then
    return nil
  end
  redis.call('ZSCORE', index, session_id)
  redis.call('ZCARD', events)
  return header[1], tonumber(header[2]), tonumber(header[3])
end
