#!lua flags=allow-oom
-- prune_index: remove expired sessions from the index.
--
-- KEYS[1] index        sessions:{app:user}     zset
-- KEYS[2...] sessions  session:{app:user}:sid  hash
--
-- ARGV[1...] tail  bytes  the ids of these sessions, in the order of KEYS
--
-- REPLY OK pruned
-- COST O(log N) per session
local index = KEYS[1]
local tail = 1

redis.call('ZCARD', index)

-- Write.
local pruned = 0
for at = 2, #KEYS do
  if redis.call('EXISTS', KEYS[at]) == 0 then
    pruned = pruned + redis.call('ZREM', index, ARGV[at - 2 + tail])
  end
end
return {'OK', pruned}
