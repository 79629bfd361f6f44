--@include refresh
-- refresh_tiers: move the deadlines of the user and app tier if that is due.
local function refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
  if user then
    refresh(user, now_ms, user_ttl_ms)
  end
  if app then
    refresh(app, now_ms, app_ttl_ms)
  end
end
