#!lua
-- renew_turn: extend the lease of a turn, or give the turn back, unless another holder has taken
-- the turn. The same for another lease of the session.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] token       int    fencing token
-- ARGV[4] lease_ms    int    duration from now; "0" = give the turn back
-- ARGV[5] lease       bytes  "turn" or "compactor"
--
-- REPLY OK until_us
-- REPLY LOST   another holder has the turn, or it was given back and is to be extended
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- COST O(1)
--@include lease_fields
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include wake_watchers
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local token, lease_ms, lease = ARGV[3], tonumber(ARGV[4]), ARGV[5]

local header, refusal = read_checked_header(session, events, index, session_id, '')
if not header then
  return refusal or {'NOT_FOUND'}
end
local token_field, until_field, holder_field, length_field = lease_fields(lease)
local found = redis.call('HMGET', session, token_field, holder_field)
if found[1] ~= token or lease_ms > 0 and found[2] == '' then
  return {'LOST'}
end
local now_us = server_time_us()
local until_us = now_us + lease_ms * 1000

-- Write.
if lease_ms > 0 then
  redis.call('HSET', session, until_field, until_us, length_field, lease_ms)
else
  redis.call('HSET', session, until_field, 0, holder_field, '')
end
refresh_session_if_due(
  session, events, index, header.deadline_ms, to_ms(now_us), ttl_ms, header.last_us, false
)
if lease_ms == 0 and lease == 'turn' then
  wake_watchers(session, header.flags, to_ms(now_us), 'turn')
end
return {'OK', until_us}
