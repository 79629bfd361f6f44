--@include refresh_tier
-- write_delta: apply a delta to a hash. Returns the index of the first argument after the delta.
-- A delta is: number of pairs, key, value, ..., number of keys to remove, key, ...
-- ttl_ms: the TTL of a user or app tier, which is then refreshed; nil for a session.
-- Removals come last, because they may remove the hash: in a migrating slot, a script fails if it
-- then uses the missing key. unpack() gets at most 900 values, below Lua's stack limit.
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
