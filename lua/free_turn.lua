#!lua
-- free_turn: take the turn of a session from its holder, so that another run can acquire it. A new
-- fencing token makes sure that the holder writes nothing more.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
--
-- REPLY OK
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- COST O(1)
--@include header_number
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include wake_watchers
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms, created_us = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
local now_us = server_time_us()
local token = header_number(redis.call('HGET', session, 'turn_token') or '0')
if not token then
  return {'CORRUPT', session, 'turn_token'}
end
token = math.max(token + 1, now_us)

-- Write.
redis.call('HSET', session, 'turn_token', token, 'turn_until_us', 0, 'turn_holder', '')
refresh_session_if_due(
  session, events, index, header.deadline_ms, to_ms(now_us), ttl_ms, header.last_us, false
)
wake_watchers(session, header.flags, to_ms(now_us), 'turn')
return {'OK'}
