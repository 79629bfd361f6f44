#!lua
-- acquire_turn: take the turn of a session, if nobody has it: a lease with a fencing token.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] holder      bytes  random; a call that is sent again finds its own lease
-- ARGV[4] lease_ms    int    duration
--
-- REPLY OK token until_us
-- REPLY TAKEN until_us
-- REPLY NOT_FOUND
-- COST O(1)
--@include is_due
--@include now_us
--@include read_header
--@include refresh_session
--@include to_ms
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local holder, lease_ms = ARGV[3], tonumber(ARGV[4])

local version, last_us, deadline_ms = read_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
local turn = redis.call('HMGET', session, 'turn_token', 'turn_until_us', 'turn_holder')
local token, until_us = tonumber(turn[1] or 0), tonumber(turn[2] or 0)
local now = now_us()
if until_us > now and turn[3] ~= holder then
  return {'TAKEN', until_us}
end
if turn[3] ~= holder then
  -- Beyond all tokens of an earlier session of this id, too.
  token = math.max(token + 1, now)
end
until_us = now + lease_ms * 1000

-- Write.
redis.call('HSET', session, 'turn_token', token, 'turn_until_us', until_us, 'turn_holder', holder)
if deadline_ms == 0 or is_due(deadline_ms, to_ms(now), ttl_ms) then
  refresh_session(session, events, index, to_ms(now), ttl_ms, last_us, false)
end
return {'OK', token, until_us}
