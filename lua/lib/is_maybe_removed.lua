--@include header_number
-- is_maybe_removed: whether an absent event may have been stored since `since_us` and then removed.
-- It may if an event was popped or cleared since, if events are missing, or if the log is full and
-- its oldest event is younger than `since_us` or than the event.
local function is_maybe_removed(session, events, count, event_limit, timestamp_us, since_us)
  local removed_us = header_number(redis.call('HGET', session, 'removed_us') or '0') or since_us
  local num_events = redis.call('ZCARD', events)
  if removed_us >= since_us or count > num_events then
    return true
  elseif event_limit <= 0 or num_events < event_limit then
    return false
  end
  local oldest = redis.call('ZRANGE', events, 0, 0, 'WITHSCORES')
  return tonumber(oldest[2]) > math.min(timestamp_us, since_us)
end
