-- check_tiers: fail before the first write if a tier's key holds something else.
local function check_tiers(user, app)
  if user then
    redis.call('HLEN', user)
  end
  if app then
    redis.call('HLEN', app)
  end
end
