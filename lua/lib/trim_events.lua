-- trim_events: remove the oldest events beyond the limit; 0 = no limit.
local function trim_events(events, event_limit)
  if event_limit > 0 then
    redis.call('ZREMRANGEBYRANK', events, 0, -event_limit - 1)
  end
end
