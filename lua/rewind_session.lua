#!lua
-- rewind_session: remove the newest events of a session, and replace its state. A summary of events
-- that are removed goes too.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[5] first       int    the position from which on events are removed
-- ARGV[6...] tail     bytes  the new state: number of pairs, key, value, ...; nothing = it stays
--
-- REPLY OK version now_us num_removed old_version
-- REPLY COVERED compacted_us   a summary covers events that are removed and others that are gone
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn
-- REPLY OTHER_KEY data_key  of the session; the values have another one
-- COST O(log N + M) with M removed events, and O(S) with S state keys if state is replaced
--@include check_condition
--@include flags_with_room
--@include note_change
--@include read_checked_header
--@include read_summary
--@include refresh_session
--@include remove_summary
--@include replace_state
--@include server_time_us
--@include to_ms
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, condition, first = ARGV[3], ARGV[4], ARGV[5]
local tail = 6

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version, ARGV[tail] and header.flags)
if refusal then
  return refusal
end
local summary
summary, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
local is_behind = summary and tonumber(first) <= summary.compacted_us
if is_behind and summary.covered < summary.summary_events then
  return {'COVERED', summary.compacted_us}
end
local num_events = redis.call('ZCARD', events)
local num_removed = redis.call('ZCOUNT', events, first, '+inf')
local now_us = server_time_us()
if num_removed > 0 then
  header.flags = flags_with_room(header, num_removed == num_events)
end

-- Write.
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
redis.call('HSET', session, 'removed_us', now_us, 'flags', header.flags or '')
if header.count then
  -- What is missing stays missing.
  redis.call('HSET', session, 'count', math.max(header.count, num_events) - num_removed)
end
if is_behind then
  remove_summary(session, header.flags)
end
if num_removed > 0 then
  note_change(
    session, header.flags, new_version, tonumber(first), header.last_us, to_ms(now_us)
  )
end
replace_state(session, ARGV, tail)
local remaining = num_removed < num_events and events or nil
refresh_session(session, remaining, index, to_ms(now_us), ttl_ms, header.last_us, is_new_member)
-- Last, because it may remove the key: see write_delta.
redis.call('ZREMRANGEBYSCORE', events, first, '+inf')
return {'OK', new_version, now_us, num_removed, header.version}
