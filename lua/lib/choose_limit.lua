-- choose_limit: how many events a session keeps: the call's limit, or else its own. A session
-- of release 0.1.0 has none and keeps what it holds. 0 = all.
local function choose_limit(event_limit, own_limit, num_events)
  return event_limit or own_limit or math.max(1000, num_events)
end
