--@include new_deadline
-- is_due: whether a refresh has to move this deadline: it would come too early, or later than a
-- refresh would set it.
local function is_due(deadline_ms, now_ms, ttl_ms)
  return ttl_ms > 0 and
    (deadline_ms < now_ms + ttl_ms or deadline_ms > new_deadline(now_ms, ttl_ms))
end
