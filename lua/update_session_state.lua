#!lua
-- update_session_state: set, remove and increment state in all three tiers.
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
-- ARGV[4] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[5] if_absent   bool   set only keys that are not there
-- ARGV[6...] tail     bytes  the change, as fold_changes reads it
--
-- REPLY OK version now_us
-- REPLY ADDED version now_us sums  the change has increments; sums: the new values, as text
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                       the caller does not hold the turn
-- REPLY OTHER_KEY data_key         of the session; the values have another one
-- REPLY NOT_INTEGER key field      the value cannot be incremented
-- REPLY OUT_OF_RANGE key field     the value or the sum is not below 2^53
-- COST O(1) per key
--@include check_condition
--@include check_tiers
--@include fold_changes
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, condition, if_absent = ARGV[3], ARGV[4], ARGV[5] == '1'
local tail = 6

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version, header.flags)
if refusal then
  return refusal
end
check_tiers(user, app)
local now_us = server_time_us()
local now_ms = to_ms(now_us)
local change, change_at, sums = ARGV, tail + 1, nil
if ARGV[tail] ~= '0' then
  change, sums = fold_changes({session, user, app}, ARGV, {tail})
  if not change then
    return sums -- a refusal
  end
  change_at = 1
end

-- Write.
write_tiers(session, user, app, change, change_at, now_ms, if_absent)
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
refresh_session_if_due(
  session, events, index, header.deadline_ms, now_ms, ttl_ms, header.last_us, is_new_member
)
if sums then
  return {'ADDED', new_version, now_us, sums}
end
return {'OK', new_version, now_us}
