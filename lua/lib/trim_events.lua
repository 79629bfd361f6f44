-- trim_events: remove the oldest events beyond the limit, at most 1,000 in a call, so that a limit
-- that was lowered does not stop the server. 0 = no limit. Returns how many events remain.
local function trim_events(events, event_limit, num_events)
  local surplus = math.min(num_events - event_limit, 1000)
  if event_limit <= 0 or surplus <= 0 then
    return num_events
  end
  redis.call('ZREMRANGEBYRANK', events, 0, surplus - 1)
  return num_events - surplus
end
