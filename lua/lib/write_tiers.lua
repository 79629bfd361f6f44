--@include refresh_tier
--@include write_delta
-- write_tiers: apply a delta of the session tier; then, of each tier whose key the call names, its
-- TTL in milliseconds and its delta. Refreshes those tiers.
local function write_tiers(session, user, app, args, at, now_ms)
  at = write_delta(session, args, at)
  if user then
    local ttl_ms = tonumber(args[at])
    at = write_delta(user, args, at + 1)
    refresh_tier(user, now_ms, ttl_ms)
  end
  if app then
    local ttl_ms = tonumber(args[at])
    write_delta(app, args, at + 1)
    refresh_tier(app, now_ms, ttl_ms)
  end
end
