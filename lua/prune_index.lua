#!lua flags=allow-oom
-- prune_index: remove expired sessions from the index. If it has no deadline although all sessions
-- in it have one, set it: a session that never expired had removed it.
--
-- KEYS[1] index        sessions:{app:user}     zset
-- KEYS[2...] sessions  session:{app:user}:sid  hash
--
-- ARGV[1...] tail  bytes  the ids of these sessions, in the order of KEYS; at most 1,000, distinct
--
-- REPLY OK pruned
-- COST O(log N) per session
local index = KEYS[1]
local tail = 1

local num_sessions = redis.call('ZCARD', index)
local lacks_deadline = redis.call('PEXPIRETIME', index) == -1
local gone, num_known, latest_ms = {}, 0, 0
for at = 2, #KEYS do
  local id, deadline_ms = ARGV[at - 2 + tail], redis.call('PEXPIRETIME', KEYS[at])
  if deadline_ms == -2 then
    gone[#gone + 1] = id
  end
  if lacks_deadline and redis.call('ZSCORE', index, id) then
    num_known = num_known + 1
    latest_ms = math.max(latest_ms, deadline_ms == -1 and math.huge or deadline_ms)
  end
end

-- Write.
if num_known == num_sessions and latest_ms > 0 and latest_ms < math.huge then
  redis.call('PEXPIREAT', index, latest_ms)
end
if #gone == 0 then
  return {'OK', 0}
end
-- Last, because it may remove the key: see write_delta.
return {'OK', redis.call('ZREM', index, unpack(gone))}
