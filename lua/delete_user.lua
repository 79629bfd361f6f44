#!lua flags=allow-oom
-- delete_user: remove the state of a user, unless the user has sessions.
--
-- KEYS[1] index  sessions:{app:user}  zset
-- KEYS[2] user   userdata:{app:user}  hash
--
-- REPLY OK num_sessions num_keys   sessions that the user has; keys of state that were removed
-- COST O(1), and O(keys) in the background
local index, user = KEYS[1], KEYS[2]

local num_sessions, num_keys = redis.call('ZCARD', index), redis.call('HLEN', user)
if num_sessions > 0 then
  return {'OK', num_sessions, 0}
end

-- Write.
redis.call('UNLINK', user)
return {'OK', 0, num_keys}
