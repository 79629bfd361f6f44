--@include is_due
--@include new_deadline
-- refresh_tier: set the deadline of the user or app tier, if it exists and is due.
-- ttl_ms: 0 leaves it alone.
local function refresh_tier(tier, now_ms, ttl_ms)
  if ttl_ms == 0 then
    return
  end
  local deadline_ms = redis.call('PEXPIRETIME', tier)
  if deadline_ms ~= -2 and is_due(deadline_ms, now_ms, ttl_ms) then
    redis.call('PEXPIREAT', tier, new_deadline(now_ms, ttl_ms))
  end
end
