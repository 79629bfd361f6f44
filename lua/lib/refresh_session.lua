--@include extend_index_ttl
--@include new_deadline
-- refresh_session: give all keys of a session one deadline, and note it in the header, where a
-- script finds it together with the version. 0 = events that are stored next lack it. A TTL of 0
-- leaves the session's deadline alone, and only gives it to the others. events: nil if the script
-- is about to remove that key.
local function refresh_session(session, events, index, now_ms, ttl_ms, last_us, is_new_member)
  local deadline_ms
  if ttl_ms > 0 then
    deadline_ms = new_deadline(now_ms, ttl_ms)
    redis.call('PEXPIREAT', session, deadline_ms)
  else
    deadline_ms = redis.call('PEXPIRETIME', session)
  end
  extend_index_ttl(index, deadline_ms, is_new_member)
  -- Before the first event last_us is 0, which makes its append come here.
  local is_given = deadline_ms < 0 or events and redis.call('PEXPIREAT', events, deadline_ms) == 1
  if not is_given and last_us > 0 then
    deadline_ms = 0
  end
  redis.call('HSET', session, 'deadline_ms', deadline_ms)
end
