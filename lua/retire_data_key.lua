#!lua flags=allow-oom
-- retire_data_key: note that delete_user is about to remove the data key of a user.
--
-- KEYS[1] data_key  datakey:{app:user}  hash
--
-- ARGV[1] token  bytes  random; delete_data_key removes the key only if nobody has used it since
--
-- REPLY OK
-- COST O(1)
local data_key = KEYS[1]
local token = ARGV[1]

local is_there = redis.call('HEXISTS', data_key, 'name') == 1

-- Write.
if is_there then
  redis.call('HSET', data_key, 'retired', token)
end
return {'OK'}
