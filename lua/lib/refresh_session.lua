--@include extend_index_ttl
--@include new_deadline
-- refresh_session: set one deadline on all keys of a session, and store it in the header, where
-- scripts read it together with the version.
-- A stored deadline of 0 means: the log is empty, so the next append creates the key of the events
-- without a deadline and must refresh. Before the first event (last_us = 0) the real deadline is
-- stored, because the first append always refreshes.
-- ttl_ms: 0 keeps the session's deadline and copies it to the other keys.
-- events: nil if the script is about to remove that key.
local function refresh_session(session, events, index, now_ms, ttl_ms, last_us, is_new_member)
  local deadline_ms
  if ttl_ms > 0 then
    deadline_ms = new_deadline(now_ms, ttl_ms)
    redis.call('PEXPIREAT', session, deadline_ms)
  else
    deadline_ms = redis.call('PEXPIRETIME', session)
  end
  extend_index_ttl(index, deadline_ms, is_new_member)
  local is_set = deadline_ms < 0 or events and redis.call('PEXPIREAT', events, deadline_ms) == 1
  if not is_set and last_us > 0 then
    deadline_ms = 0
  end
  redis.call('HSET', session, 'deadline_ms', deadline_ms)
end
