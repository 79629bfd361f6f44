--@include new_deadline
-- is_due: whether a deadline must be set again: it is less than the TTL away, or further away than
-- a refresh would set it, or 0, which refresh_session explains.
local function is_due(deadline_ms, now_ms, ttl_ms)
  return deadline_ms == 0 or ttl_ms > 0 and
    (deadline_ms < now_ms + ttl_ms or deadline_ms > new_deadline(now_ms, ttl_ms))
end
