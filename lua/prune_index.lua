#!lua flags=allow-oom
-- prune_index: take sessions out of the index whose keys have expired.
--
-- KEYS[1] index     zset
-- KEYS[2...] sessions hash
--
-- ARGV[1...] tail   bytes  the sessions' members of the index, in the order of KEYS
--
-- REPLY OK
-- COST O(log N) a session
local index = KEYS[1]
local tail = 1

redis.call('ZCARD', index)

-- Write.
for at = 2, #KEYS do
  if redis.call('EXISTS', KEYS[at]) == 0 then
    redis.call('ZREM', index, ARGV[at - 2 + tail])
  end
end
return {'OK'}
