#!lua
-- renew_turn: move the end of a lease, as long as nobody else has taken the turn.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] token       int    fencing token
-- ARGV[4] lease_ms    int    duration from now; "0" = give the turn back
--
-- REPLY OK until_us
-- REPLY LOST
-- REPLY NOT_FOUND
-- COST O(1)
--@include is_due
--@include now_us
--@include read_header
--@include refresh_session
--@include to_ms
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local token, lease_ms = ARGV[3], tonumber(ARGV[4])

local version, last_us, deadline_ms = read_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
if redis.call('HGET', session, 'turn_token') ~= token then
  return {'LOST'}
end
local now = now_us()
local until_us = now + lease_ms * 1000

-- Write.
if lease_ms > 0 then
  redis.call('HSET', session, 'turn_until_us', until_us)
else
  redis.call('HSET', session, 'turn_until_us', 0, 'turn_holder', '')
end
if deadline_ms == 0 or is_due(deadline_ms, to_ms(now), ttl_ms) then
  refresh_session(session, events, index, to_ms(now), ttl_ms, last_us, false)
end
return {'OK', until_us}
