--@include wake_watchers
-- note_change: remember that the events from one position to another were removed or replaced, and
-- wake watchers, if a process has ever watched the session. The header keeps the last 9 changes.
-- flags: the session's flags, from read_header. "l": a process has watched the session.
local function note_change(session, flags, version, first, last, now_ms)
  if not flags or not string.find(flags, 'l', 1, true) then
    return
  end
  local changes = {}
  for change in string.gmatch(redis.call('HGET', session, 'changes') or '', '%S+') do
    changes[#changes + 1] = change
  end
  changes[#changes + 1] = string.format('%.0f:%.0f:%.0f', version, first, last)
  redis.call('HSET', session, 'changes', table.concat(changes, ' ', math.max(#changes - 8, 1)))
  wake_watchers(session, flags, now_ms)
end
