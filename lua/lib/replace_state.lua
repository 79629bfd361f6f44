-- replace_state: set pairs of state and remove all other state of a session. Without arguments at
-- that place the state stays; otherwise they are: number of pairs, key, value, ...
-- unpack() gets at most 900 values, below Lua's stack limit.
local function replace_state(session, args, at)
  if not args[at] then
    return
  end
  local last, is_set, removed = at + 2 * args[at], {}, {}
  for pair = at + 1, last, 2 do
    is_set[args[pair]] = true
  end
  for _, field in ipairs(redis.call('HKEYS', session)) do
    if string.sub(field, 1, 1) == '.' and not is_set[field] then
      removed[#removed + 1] = field
    end
  end
  for first = at + 1, last, 900 do
    redis.call('HSET', session, unpack(args, first, math.min(first + 899, last)))
  end
  for first = 1, #removed, 900 do
    redis.call('HDEL', session, unpack(removed, first, math.min(first + 899, #removed)))
  end
end
