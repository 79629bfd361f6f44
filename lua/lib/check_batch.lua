--@include is_maybe_removed
-- check_batch: the reply that refuses a batch of events, or nil. A batch that is stored already is
-- accepted even if its condition fails: the call is a repeat.
-- refusal: the reply of check_condition. age_us: 0 = first attempt. state: count and event_limit.
--
-- REPLY UNKNOWN
local function check_batch(session, events, args, starts, refusal, age_us, since_us, state)
  if not refusal and age_us == 0 then
    return nil
  end
  for number = 1, #starts do
    local start = starts[number]
    if not redis.call('ZSCORE', events, args[start]) then
      local timestamp_us = tonumber(args[start + 1])
      if age_us == 0 then
        return refusal
      elseif refusal or is_maybe_removed(
        session, events, state.count, state.event_limit, timestamp_us, since_us
      ) then
        return {'UNKNOWN'}
      end
    end
  end
  return nil
end
