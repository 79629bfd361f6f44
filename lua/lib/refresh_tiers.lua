--@include refresh_tier
-- refresh_tiers: refresh the user tier, and the app tier if the call names it.
local function refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
  refresh_tier(user, now_ms, user_ttl_ms)
  if app then
    refresh_tier(app, now_ms, app_ttl_ms)
  end
end
