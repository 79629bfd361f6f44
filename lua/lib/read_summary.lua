--@include header_number
-- read_summary: the numbers of a session's summary, by the names of their header fields; nil
-- without a summary; nil and a reply if a field is not valid.
-- flags: the session's flags, from read_header. "c": a summary covers its oldest events.
--
-- REPLY CORRUPT key field
local function read_summary(session, flags)
  if not flags or not string.find(flags, 'c', 1, true) then
    return nil
  end
  local names = {'compacted_us', 'covered', 'summary_events', 'summary_us'}
  local fields, summary = redis.call('HMGET', session, unpack(names)), {}
  for number, name in ipairs(names) do
    summary[name] = header_number(fields[number])
    if not summary[name] then
      return nil, {'CORRUPT', session, name}
    end
  end
  return summary
end
