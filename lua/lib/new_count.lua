-- new_count: how many events the log should hold after an append: those that it holds, and the
-- missing ones that the limit would not have removed.
local function new_count(num_events, num_missing, event_limit)
  if event_limit > 0 then
    num_missing = math.min(num_missing, event_limit - num_events)
  end
  return num_events + math.max(num_missing, 0)
end
