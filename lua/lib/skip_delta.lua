-- A delta is a block of arguments: count of pairs, key, value, ..., count of removed keys, key, ...
-- skip_delta: index of the argument behind a delta.
local function skip_delta(args, at)
  local removed = at + 1 + 2 * args[at]
  return removed + 1 + args[removed]
end
