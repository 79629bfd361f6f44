#!lua
-- renew_turn: move the end of a lease, as long as nobody else has taken the turn.
--
-- KEYS[1] session  hash  must exist
--
-- ARGV[1] token     int  fencing token
-- ARGV[2] lease_ms  int  duration from now; "0" = give the turn back
--
-- REPLY OK until_us
-- REPLY LOST
-- REPLY NOT_FOUND
-- COST O(1)
--@include now_us
local session = KEYS[1]
local token, lease_ms = ARGV[1], tonumber(ARGV[2])

local header = redis.call('HMGET', session, 'version', 'turn_token')
if not header[1] then
  return {'NOT_FOUND'}
end
if header[2] ~= token then
  return {'LOST'}
end
local until_us = now_us() + lease_ms * 1000

-- Write.
if lease_ms > 0 then
  redis.call('HSET', session, 'turn_until_us', until_us)
else
  redis.call('HSET', session, 'turn_until_us', 0, 'turn_holder', '')
end
return {'OK', until_us}
