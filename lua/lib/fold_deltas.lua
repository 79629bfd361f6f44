-- fold_deltas: one change of tiers, as write_tiers reads it, with the effect of several in turn.
-- starts: indices of the first argument of each; tiers: how many they change.
-- A key that one removes and a later one sets is never removed: see write_delta.
local function fold_deltas(args, starts, tiers)
  local folded = {}
  for tier = 1, tiers do
    local values, ttl_ms = {}, nil
    for number, at in ipairs(starts) do
      if tier > 1 then
        ttl_ms, at = args[at], at + 1
      end
      local removed = at + 1 + 2 * args[at]
      for pair = at + 1, removed - 1, 2 do
        values[args[pair]] = args[pair + 1]
      end
      local behind = removed + 1 + args[removed]
      for each = removed + 1, behind - 1 do
        values[args[each]] = false
      end
      starts[number] = behind
    end
    local pairs_at = #folded + 1
    if tier > 1 then
      folded[pairs_at], pairs_at = ttl_ms, pairs_at + 1
    end
    local gone = {}
    folded[pairs_at] = 0
    for key, value in pairs(values) do
      if value then
        folded[pairs_at] = folded[pairs_at] + 1
        folded[#folded + 1], folded[#folded + 2] = key, value
      else
        gone[#gone + 1] = key
      end
    end
    folded[#folded + 1] = #gone
    for _, key in ipairs(gone) do
      folded[#folded + 1] = key
    end
  end
  return folded
end
