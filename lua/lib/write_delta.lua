--@include refresh_tier
local function set_absent(hash, args, first, last)
  for pair = first, last, 2 do
    if redis.call('HEXISTS', hash, args[pair]) == 0 then
      redis.call('HSET', hash, args[pair], args[pair + 1])
    end
  end
end

-- write_delta: apply a delta to a hash. Returns the index of the first argument after the delta.
-- A delta is: number of pairs, key, value, ..., number of keys to remove, key, ...
-- ttl_ms: the TTL of a user or app tier, which is then refreshed; nil for a session.
-- only_absent: set only keys that the hash lacks.
-- Removals come last, because they may remove the hash: in a migrating slot, a script fails if it
-- then uses the missing key. unpack() gets at most 900 values, below Lua's stack limit.
local function write_delta(hash, args, at, ttl_ms, now_ms, only_absent)
  local removed = at + 1 + 2 * args[at]
  if only_absent then
    set_absent(hash, args, at + 1, removed - 1)
  else
    for first = at + 1, removed - 1, 900 do
      redis.call('HSET', hash, unpack(args, first, math.min(first + 899, removed - 1)))
    end
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
