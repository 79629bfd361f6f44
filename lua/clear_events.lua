#!lua flags=allow-oom
-- clear_events: remove all events and their summary. State stays, and later events get later
-- positions.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] condition   bytes  as check_condition reads it; "" = no condition
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn
-- REPLY OTHER_KEY data_key  of the session; the values have another one
-- COST O(1), and O(N) in the background
--@include check_condition
--@include flags_with_room
--@include note_change
--@include read_checked_header
--@include refresh_session
--@include remove_summary
--@include server_time_us
--@include to_ms
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, condition = ARGV[3], ARGV[4]

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version)
if refusal then
  return refusal
end
local now_us = server_time_us()
header.flags = flags_with_room(header, true)

-- Write.
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
redis.call('HSET', session, 'count', 0, 'removed_us', now_us, 'flags', header.flags)
remove_summary(session, header.flags)
note_change(session, header.flags, new_version, 0, header.last_us, to_ms(now_us))
refresh_session(session, nil, index, to_ms(now_us), ttl_ms, header.last_us, is_new_member)
-- Last, because it removes the key: see write_delta.
redis.call('UNLINK', events)
return {'OK', new_version, now_us}
