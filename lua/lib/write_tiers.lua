--@include write_delta
-- write_tiers: apply a state change: the delta of the session tier; then, for each further tier
-- whose key the call names, its TTL in milliseconds and its delta. Refreshes those tiers.
local function write_tiers(session, user, app, args, at, now_ms)
  at = write_delta(session, args, at)
  if user then
    at = write_delta(user, args, at + 1, tonumber(args[at]), now_ms)
  end
  if app then
    write_delta(app, args, at + 1, tonumber(args[at]), now_ms)
  end
end
