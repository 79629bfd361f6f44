--@include check_tiers
-- check_create: fail before the first write if a key of a new session has a wrong type.
-- The script itself reads the session's hash.
local function check_create(events, index, session_id, user, app)
  redis.call('ZCARD', events)
  redis.call('ZSCORE', index, session_id)
  check_tiers(user, app)
end
