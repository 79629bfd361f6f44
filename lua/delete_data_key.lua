#!lua flags=allow-oom
-- delete_data_key: remove the data key of a user, unless it was used since retire_data_key.
--
-- KEYS[1] data_key  datakey:{app:user}  hash
--
-- ARGV[1] token  bytes  the same as in retire_data_key
--
-- REPLY OK num_left   1 = the key is still there
-- COST O(1)
local data_key = KEYS[1]
local token = ARGV[1]

local fields = redis.call('HMGET', data_key, 'name', 'retired')

-- Write.
if fields[1] and fields[2] ~= token then
  return {'OK', 1}
end
redis.call('UNLINK', data_key)
return {'OK', 0}
