-- wake_watchers: publish a message if a process watches the session, so that it reads what is new,
-- or asks for the turn. The channel has the name of the session's key. Without the right to publish
-- nothing happens, and watchers find out by themselves a little later.
-- flags: the session's flags, from read_header. "l": a process has watched the session.
-- message: "turn" if the turn was released; nil if the log has changed.
local function wake_watchers(session, flags, now_ms, message)
  if flags and string.find(flags, 'l', 1, true) then
    local listen_ms = tonumber(redis.call('HGET', session, 'listen_ms') or '0') or 0
    if listen_ms >= now_ms then
      redis.pcall('SPUBLISH', session, message or '')
    end
  end
end
