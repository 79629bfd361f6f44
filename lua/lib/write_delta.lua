--@include refresh_tier
-- write_delta: apply a delta to a hash. Returns the index of the first argument after the delta.
-- A delta is: number of pairs, key, value, ..., number of keys to remove, key, ...
-- ttl_ms: refresh the hash as a tier; nil = do not.
-- Removing comes last, because it may remove the hash: in a slot that is being migrated, a script
-- that then names the missing key fails. unpack() gets at most 900 values, below Lua's stack limit.
local function write_delta(hash, args, at, ttl_ms, now_ms)
  local removed = at + 1 + 2 * args[at]
  for first = at + 1, removed - 1, 900 do
    redis.call('HSET', hash, unpack(args, first, math.min(first + 899, removed - 1)))
  end
  if ttl_ms then
    refresh_tier(hash, now_ms, ttl_ms)
  end
  local after = removed + 1 + args[removed]
  for first = removed + 1, after - 1, 900 do
    redis.call('HDEL', hash, unpack(args, first, math.min(first + 899, after - 1)))
  end
  return after
end
