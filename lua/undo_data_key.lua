#!lua flags=allow-oom
-- undo_data_key: remove what a call has just written to the user tier with a data key that is gone.
-- Whatever others have written stays.
--
-- KEYS[1] user  userdata:{app:user}  hash
--
-- ARGV[1...] tail  bytes  keys of the tier, each with the value that it must have
--
-- REPLY OK
-- COST O(1) per key
local user = KEYS[1]
local tail = 1

redis.call('HLEN', user)
local removed = {}
for number = tail, #ARGV, 2 do
  if redis.call('HGET', user, ARGV[number]) == ARGV[number + 1] then
    removed[#removed + 1] = ARGV[number]
  end
end

-- Write.
for first = 1, #removed, 900 do
  redis.call('HDEL', user, unpack(removed, first, math.min(first + 899, #removed)))
end
return {'OK'}
