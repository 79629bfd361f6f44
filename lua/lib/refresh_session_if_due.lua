--@include is_due
--@include refresh_session
-- refresh_session_if_due: refresh a session if its deadline is due, or if the index did not hold
-- the session: the index may be new and lack a deadline.
local function refresh_session_if_due(
  session, events, index, deadline_ms, now_ms, ttl_ms, last_us, is_new_member
)
  if is_new_member or is_due(deadline_ms, now_ms, ttl_ms) then
    refresh_session(session, events, index, now_ms, ttl_ms, last_us, is_new_member)
  end
end
