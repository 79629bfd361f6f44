--@include write_delta
-- write_tiers: apply the deltas of the session, user and app tier, in that order, as far as the
-- call names their keys; index of the argument behind them.
local function write_tiers(session, user, app, args, at)
  at = write_delta(session, args, at)
  if user then
    at = write_delta(user, args, at)
  end
  if app then
    at = write_delta(app, args, at)
  end
  return at
end
