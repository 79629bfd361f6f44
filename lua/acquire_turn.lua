#!lua
-- acquire_turn: take the turn of a session unless another holder has it. A turn is a lease with a
-- fencing token.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] holder      bytes  random; a retry of the call finds its own lease
-- ARGV[4] lease_ms    int    duration
--
-- REPLY OK token until_us
-- REPLY TAKEN until_us
-- REPLY NOT_FOUND
-- COST O(1)
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local holder, lease_ms = ARGV[3], tonumber(ARGV[4])

local version, last_us, deadline_ms = read_checked_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
local turn = redis.call('HMGET', session, 'turn_token', 'turn_until_us', 'turn_holder', 'turn_ms')
local token, until_us = tonumber(turn[1] or 0), tonumber(turn[2] or 0)
local now_us = server_time_us()
-- A lease that ends later than its length from now was taken while the clock was ahead. A second
-- more is allowed, because a replica that becomes the primary has a clock of its own.
local longest_us = turn[4] and (turn[4] + 1000) * 1000 or math.huge
local is_taken = until_us > now_us and until_us - now_us <= longest_us
if is_taken and turn[3] ~= holder then
  return {'TAKEN', until_us}
end
if turn[3] ~= holder then
  -- The time makes it larger than every token of an earlier session with the same id.
  token = math.max(token + 1, now_us)
end
until_us = now_us + lease_ms * 1000

-- Write.
redis.call('HSET', session, 'turn_token', token, 'turn_until_us', until_us, 'turn_ms', lease_ms,
  'turn_holder', holder)
refresh_session_if_due(session, events, index, deadline_ms, to_ms(now_us), ttl_ms, last_us, false)
return {'OK', token, until_us}
