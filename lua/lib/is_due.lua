--@include new_deadline
-- is_due: whether this deadline must be set again, because data would expire before its TTL, or
-- later than after a refresh. 0 = some key of the session has no deadline; see refresh_session.
local function is_due(deadline_ms, now_ms, ttl_ms)
  return deadline_ms == 0 or ttl_ms > 0 and
    (deadline_ms < now_ms + ttl_ms or deadline_ms > new_deadline(now_ms, ttl_ms))
end
