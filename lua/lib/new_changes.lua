-- new_changes: where the changes of new events begin. An event is new if it is not stored yet; if
-- it stands in the batch twice, only the first one is new.
-- starts: index of the first argument of each event of append_events.
local function new_changes(events, args, starts)
  local found, seen = {}, {}
  for number = 1, #starts do
    local start = starts[number]
    local event = args[start]
    if args[start + 2] ~= '0' and not seen[event] and not redis.call('ZSCORE', events, event) then
      found[#found + 1] = start + 3
    end
    seen[event] = true
  end
  return found
end
