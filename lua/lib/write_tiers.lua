--@include write_delta
-- write_tiers: apply a state change: the delta of the session tier; then, for each further tier
-- whose key the call names, its TTL in milliseconds and its delta. Refreshes those tiers.
-- only_absent: set only keys that their tier lacks.
local function write_tiers(session, user, app, args, at, now_ms, only_absent)
  at = write_delta(session, args, at, nil, now_ms, only_absent)
  if user then
    at = write_delta(user, args, at + 1, tonumber(args[at]), now_ms, only_absent)
  end
  if app then
    write_delta(app, args, at + 1, tonumber(args[at]), now_ms, only_absent)
  end
end
