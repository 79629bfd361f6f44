--@include add_integer
local function add_all(list, values)
  local size = #list
  for number = 1, #values do
    list[size + number] = values[number]
  end
end

-- Adds a delta, as write_delta reads it, to values by key; false = removed. Returns the index
-- after it.
local function fold_delta(values, args, at)
  local removed = at + 1 + 2 * args[at]
  for pair = at + 1, removed - 1, 2 do
    values[args[pair]] = args[pair + 1]
  end
  local after = removed + 1 + args[removed]
  for key = removed + 1, after - 1 do
    values[args[key]] = false
  end
  return after
end

local function unfold_delta(folded, values)
  local pairs_to_set, keys_to_remove = {}, {}
  for key, value in pairs(values) do
    if value then
      pairs_to_set[#pairs_to_set + 1], pairs_to_set[#pairs_to_set + 2] = key, value
    else
      keys_to_remove[#keys_to_remove + 1] = key
    end
  end
  folded[#folded + 1] = #pairs_to_set / 2
  add_all(folded, pairs_to_set)
  folded[#folded + 1] = #keys_to_remove
  add_all(folded, keys_to_remove)
end

-- fold_changes: merge several changes into one that has the same effect and no increments. Returns
-- that change, as write_tiers reads it, and the sums of the increments, in order; or nil, and the
-- reply that refuses the call.
-- A change is: number of increments; tier (1, 2 or 3), key and amount of each; then what
-- write_tiers reads.
-- hashes: those of the tiers. starts: index of the first argument of each change.
-- A key that one change removes and a later one sets is never removed: see write_delta.
local function fold_changes(hashes, args, starts)
  local values, ttls_ms, sums = {}, {}, {}
  for tier = 1, #hashes do
    values[tier] = {}
  end
  for _, start in ipairs(starts) do
    local at = start + 1 + 3 * args[start]
    for increment = start + 1, at - 1, 3 do
      local tier, key, amount = args[increment] + 0, args[increment + 1], args[increment + 2]
      local sum, refusal = add_integer(hashes[tier], key, values[tier][key], amount)
      if refusal then
        return nil, refusal
      end
      values[tier][key] = sum
      sums[#sums + 1] = sum
    end
    for tier = 1, #hashes do
      if tier > 1 then
        ttls_ms[tier], at = args[at], at + 1
      end
      at = fold_delta(values[tier], args, at)
    end
  end
  local folded = {}
  for tier = 1, #hashes do
    folded[#folded + 1] = ttls_ms[tier]
    unfold_delta(folded, values[tier])
  end
  return folded, sums
end
