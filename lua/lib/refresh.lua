--@include due
--@include int
-- refresh: move the deadline of a key, if there is one and that is due. A TTL of 0 leaves it alone.
local function refresh(key, now_ms, ttl_ms)
  if ttl_ms == 0 then
    return
  end
  local deadline_ms = redis.call('PEXPIRETIME', key)
  local next_ms = deadline_ms ~= -2 and due(deadline_ms, now_ms, ttl_ms)
  if next_ms then
    redis.call('PEXPIREAT', key, int(next_ms))
  end
end
