#!lua
-- use_data_key: read the data key of a user in a key store. A new one is stored if there is none.
-- A delete_user that is about to remove the key then keeps it, because a call needs it.
--
-- KEYS[1] data_key  datakey:{app:user}  hash
--
-- ARGV[1] name     bytes  of the new key
-- ARGV[2] wrapped  bytes  the new key, encrypted
--
-- REPLY OK name wrapped   the key that is stored now
-- COST O(1)
local data_key = KEYS[1]
local name, wrapped = ARGV[1], ARGV[2]

local stored = redis.call('HMGET', data_key, 'name', 'wrapped')

-- Write.
if stored[1] and stored[2] then
  redis.call('HDEL', data_key, 'retired')
  return {'OK', stored[1], stored[2]}
end
redis.call('HSET', data_key, 'name', name, 'wrapped', wrapped)
return {'OK', name, wrapped}
