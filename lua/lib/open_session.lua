-- open_session: version, last position and number of stored events; nil if there is no session.
-- Reads every key that a write to the session touches, so that a wrong type fails before it.
local function open_session(session, events, index, session_id)
  local header = redis.call('HMGET', session, 'version', 'last_us')
  local version = tonumber(header[1])
  if not version then
    return nil
  end
  redis.call('ZSCORE', index, session_id)
  return version, tonumber(header[2]), redis.call('ZCARD', events)
end
