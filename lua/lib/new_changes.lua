-- new_changes: where the changes of those events begin that are not stored yet.
-- starts: index of the first argument of each event of append_events. first: the first to look at.
local function new_changes(events, args, starts, first)
  local found, seen = {}, {}
  for number = first, #starts do
    local start = starts[number]
    local event = args[start]
    if args[start + 2] ~= '0' and not seen[event] and not redis.call('ZSCORE', events, event) then
      found[#found + 1] = start + 3
    end
    seen[event] = true
  end
  return found
end
