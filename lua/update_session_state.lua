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
-- ARGV[3] condition   bytes  a version, or "t" and a token; "" = no condition
-- ARGV[4] if_absent   bool   set only keys that are not there
-- ARGV[5...] tail     bytes  the change, as fold_changes reads it
--
-- REPLY OK version now_us
-- REPLY ADDED version now_us sums  the change has increments; sums: the new values, as text
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                       the caller does not hold the turn
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
local session_id, ttl_ms, condition = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local if_absent = ARGV[4] == '1'
local tail = 5

local version, last_us, deadline_ms = read_checked_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
local refusal = check_condition(session, condition, version)
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
  write_header(session, index, session_id, version, last_us, now_us)
refresh_session_if_due(session, events, index, deadline_ms, now_ms, ttl_ms, last_us, is_new_member)
if sums then
  return {'ADDED', new_version, now_us, sums}
end
return {'OK', new_version, now_us}
