#!lua flags=allow-oom
-- prune_index: take sessions out of the index whose keys have expired.
--
-- KEYS[1] index     zset
-- KEYS[2...] sessions hash
--
-- ARGV[1...] tail   bytes  the sessions' members of the index, in the order of KEYS
--
-- REPLY OK pruned
-- COST O(log N) a session
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
