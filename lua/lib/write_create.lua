--@include int
--@include now_us
--@include refresh_session
-- write_create: write an empty session; the time of it. Keys that outlived an earlier session of
-- the same id go.
local function write_create(session, events, index, session_id, ttl_ms, generation)
  local now = now_us()
  local text = int(now)
  redis.call('UNLINK', session, events)
  redis.call('HSET', session, 'version', '1', 'created_us', text, 'updated_us', text,
    'last_us', '0', 'generation', generation)
  redis.call('ZADD', index, text, session_id)
  refresh_session(session, events, index, math.floor(now / 1000), ttl_ms, false, true)
  return now
end
