--@include header_number
-- read_header: the header of a session as numbers: version, last_us, deadline_ms, count and
-- event_limit, and its flags, as text; nil if there is no such session; nil and a reply if a field
-- is not valid. A session of release 0.1.0 has neither count nor event_limit. Most have no flags.
-- created_us: when the session must have been created, as text; "" = at any time.
--
-- REPLY CORRUPT key field
local function read_header(session, created_us)
  local names = {'version', 'last_us', 'deadline_ms', 'count', 'event_limit'}
  local fields = redis.call('HMGET', session, 'created_us', 'flags', unpack(names))
  if not fields[3] or created_us ~= '' and created_us ~= fields[1] then
    return nil
  end
  local header = {flags = fields[2] or nil}
  for number, name in ipairs(names) do
    header[name] = header_number(fields[number + 2])
    if not header[name] and (fields[number + 2] or number <= 3) then
      return nil, {'CORRUPT', session, name}
    end
  end
  return header
end
