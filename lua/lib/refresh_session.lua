--@include cover
--@include due
--@include int
-- refresh_session: give all keys of a session one deadline if that is due.
-- new_events: the log was empty before this call, so its key has no deadline yet.
-- new_member: ZADD put the session into the index for the first time.
local function refresh_session(session, events, index, now_ms, ttl_ms, new_events, new_member)
  if ttl_ms == 0 and not new_events and not new_member then
    return
  end
  local deadline_ms = redis.call('PEXPIRETIME', session)
  local next_ms = ttl_ms > 0 and due(deadline_ms, now_ms, ttl_ms)
  if next_ms then
    deadline_ms = next_ms
    redis.call('PEXPIREAT', session, int(deadline_ms))
  end
  if deadline_ms >= 0 and (next_ms or new_events) then
    redis.call('PEXPIREAT', events, int(deadline_ms))
  end
  if next_ms or new_member then
    cover(index, deadline_ms, new_member and redis.call('ZCARD', index) == 1)
  end
end
