-- note_trimmed: before events beyond the limit are trimmed, remember the position of the newest of
-- them, if a process has ever watched the session. So a watcher knows whether it missed events.
-- flags: the session's flags, from read_header. "l": a process has watched the session.
local function note_trimmed(session, flags, events, event_limit)
  if event_limit > 0 and flags and string.find(flags, 'l', 1, true) then
    local rank = -1 - event_limit
    local newest = redis.call('ZRANGE', events, rank, rank, 'WITHSCORES')
    if newest[2] then
      redis.call('HSET', session, 'trimmed_us', newest[2])
    end
  end
end
