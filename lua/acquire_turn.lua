#!lua
-- acquire_turn: take the turn of a session, if nobody has it: a lease with a fencing token.
--
-- KEYS[1] session  hash  must exist
--
-- ARGV[1] holder    bytes  random; a call that is sent again finds its own lease
-- ARGV[2] lease_ms  int    duration
--
-- REPLY OK token until_us
-- REPLY TAKEN until_us
-- REPLY NOT_FOUND
-- COST O(1)
--@include now_us
local session = KEYS[1]
local holder, lease_ms = ARGV[1], tonumber(ARGV[2])

local header = redis.call('HMGET', session, 'version', 'turn_token', 'turn_until_us', 'turn_holder')
if not header[1] then
  return {'NOT_FOUND'}
end
local token, until_us = tonumber(header[2] or 0), tonumber(header[3] or 0)
local now = now_us()
if until_us > now and header[4] ~= holder then
  return {'TAKEN', until_us}
end
if header[4] ~= holder then
  token = token + 1
end
until_us = now + lease_ms * 1000

-- Write.
redis.call('HSET', session, 'turn_token', token, 'turn_until_us', until_us, 'turn_holder', holder)
return {'OK', token, until_us}
