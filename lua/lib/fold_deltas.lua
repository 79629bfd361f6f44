local function add_all(list, values)
  local size = #list
  for number = 1, #values do
    list[size + number] = values[number]
  end
end

-- fold_deltas: one state change with the same effect as several, as write_tiers reads it.
-- starts: index of the first argument of each change; overwritten. num_tiers: tiers of each.
-- A key that one change removes and a later one sets is set only: see write_delta.
local function fold_deltas(args, starts, num_tiers)
  local folded = {}
  for tier = 1, num_tiers do
    local values, ttl_ms = {}, nil
    for number, at in ipairs(starts) do
      if tier > 1 then
        ttl_ms, at = args[at], at + 1
      end
      local removed = at + 1 + 2 * args[at]
      for pair = at + 1, removed - 1, 2 do
        values[args[pair]] = args[pair + 1]
      end
      local after = removed + 1 + args[removed]
      for key = removed + 1, after - 1 do
        values[args[key]] = false
      end
      starts[number] = after
    end
    local pairs_to_set, keys_to_remove = {}, {}
    for key, value in pairs(values) do
      if value then
        pairs_to_set[#pairs_to_set + 1], pairs_to_set[#pairs_to_set + 2] = key, value
      else
        keys_to_remove[#keys_to_remove + 1] = key
      end
    end
    if tier > 1 then
      folded[#folded + 1] = ttl_ms
    end
    folded[#folded + 1] = #pairs_to_set / 2
    add_all(folded, pairs_to_set)
    folded[#folded + 1] = #keys_to_remove
    add_all(folded, keys_to_remove)
  end
  return folded
end
