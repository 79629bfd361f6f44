-- write_delta: apply a delta to a hash; index of the argument behind it. A delta is a block of
-- arguments: count of pairs, key, value, ..., count of removed keys, key, ...
-- unpack() stays below 1,000 values a call.
local function write_delta(hash, args, at)
  local removed = at + 1 + 2 * args[at]
  for first = at + 1, removed - 1, 900 do
    redis.call('HSET', hash, unpack(args, first, math.min(first + 899, removed - 1)))
  end
  local behind = removed + 1 + args[removed]
  for first = removed + 1, behind - 1, 900 do
    redis.call('HDEL', hash, unpack(args, first, math.min(first + 899, behind - 1)))
  end
  return behind
end
