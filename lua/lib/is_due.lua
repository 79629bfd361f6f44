--@include new_deadline
-- is_due: whether this deadline must be set again: data would expire before its TTL, or later than
-- a refresh would allow. 0 = some key of the session lacks its deadline; see refresh_session.
local function is_due(deadline_ms, now_ms, ttl_ms)
  return deadline_ms == 0 or ttl_ms > 0 and
    (deadline_ms < now_ms + ttl_ms or deadline_ms > new_deadline(now_ms, ttl_ms))
end
