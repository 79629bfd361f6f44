--@include refresh_tier
-- write_delta: apply a delta to a hash; index of the argument behind it. A delta is a block of
-- arguments: count of pairs, key, value, ..., count of removed keys, key, ...
-- A TTL in milliseconds refreshes the hash as a tier; nil does not. Removing comes last, for it may
-- remove the hash, and in a slot that is being migrated no script may look for a key that is gone.
-- unpack() stays below 1,000 values a call.
local function write_delta(hash, args, at, ttl_ms, now_ms)
  local removed = at + 1 + 2 * args[at]
  for first = at + 1, removed - 1, 900 do
    redis.call('HSET', hash, unpack(args, first, math.min(first + 899, removed - 1)))
  end
  if ttl_ms then
    refresh_tier(hash, now_ms, ttl_ms)
  end
  local behind = removed + 1 + args[removed]
  for first = removed + 1, behind - 1, 900 do
    redis.call('HDEL', hash, unpack(args, first, math.min(first + 899, behind - 1)))
  end
  return behind
end
