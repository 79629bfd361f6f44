-- remove_summary: remove the summary of a session, if it has one. Its events stay.
-- flags: the session's flags, from read_header.
local function remove_summary(session, flags)
  if not flags or not string.find(flags, 'c', 1, true) then
    return
  end
  redis.call('HDEL', session,
    'compacted_us', 'covered', 'summary', 'summary_events', 'summary_us')
  local others = string.gsub(flags, 'c', '')
  redis.call('HSET', session, 'flags', others)
end
