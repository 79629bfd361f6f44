#!lua flags=allow-oom
-- undo_data_key: remove what was written to the user tier with a data key that delete_user removed
-- meanwhile. Values with another key stay.
--
-- KEYS[1] user  userdata:{app:user}  hash
--
-- ARGV[1] data_key  bytes  the name of the key
--
-- REPLY OK
-- COST O(K) with K state keys of the user
local user = KEYS[1]
local data_key = ARGV[1]

local begins = table.concat({'\3', string.char(#data_key), data_key})
local removed = {}
for _, field in ipairs(redis.call('HKEYS', user)) do
  if string.sub(redis.call('HGET', user, field), 1, #begins) == begins then
    removed[#removed + 1] = field
  end
end

-- Write.
for first = 1, #removed, 900 do
  redis.call('HDEL', user, unpack(removed, first, math.min(first + 899, #removed)))
end
return {'OK'}
