-- read_header: version (as text), last position and deadline of a session; nil if it is missing.
local function read_header(session)
  local header = redis.call('HMGET', session, 'version', 'last_us', 'deadline_ms')
  if not header[1] then
    return nil
  end
  return header[1], tonumber(header[2]), tonumber(header[3])
end
