#!lua
-- update_session_state: set and remove state in all three tiers.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash   optional
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] condition   bytes  "" = none; a version, or "t" and a token: see check_condition
-- ARGV[5...] tail     bytes  the change, as write_tiers reads it
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn
-- COST O(1) a key
--@include check_condition
--@include check_tiers
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, condition = ARGV[3], ARGV[4]
local tail = 5

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version)
if refusal then
  return refusal
end
check_tiers(user, app)
local now_us = server_time_us()
local now_ms = to_ms(now_us)

-- Write.
write_tiers(session, user, app, ARGV, tail, now_ms)
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
refresh_session_if_due(
  session, events, index, header.deadline_ms, now_ms, ttl_ms, header.last_us, is_new_member
)
return {'OK', new_version, now_us}
