#!lua flags=allow-oom
-- pop_event: remove the newest event and return it, unless a summary covers it. State stays.
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
-- REPLY OK version now_us event
-- REPLY EMPTY                    there is no event, or only covered ones
-- REPLY MISSING key expected actual   the log should hold events and holds none
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                     the caller does not hold the turn
-- REPLY OTHER_KEY data_key       of the session; the values have another one
-- COST O(log N)
--@include check_condition
--@include flags_with_room
--@include note_change
--@include read_checked_header
--@include read_summary
--@include refresh_session
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
local summary
summary, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
local newest = redis.call('ZRANGE', events, -2, -1)
local event = newest[#newest]
if not event and header.count and header.count > 0 then
  return {'MISSING', events, header.count, 0}
elseif not event
  or summary and tonumber(redis.call('ZSCORE', events, event)) <= summary.compacted_us then
  return {'EMPTY'}
end
local position = tonumber(redis.call('ZSCORE', events, event))
local now_us = server_time_us()
local flags = flags_with_room(header, #newest == 1)

-- Write.
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
redis.call('HSET', session, 'removed_us', now_us, 'flags', flags)
if header.count then
  redis.call('HSET', session, 'count', math.max(header.count - 1, #newest - 1))
end
note_change(session, header.flags, new_version, position, position, to_ms(now_us))
local remaining = #newest > 1 and events or nil
refresh_session(session, remaining, index, to_ms(now_us), ttl_ms, header.last_us, is_new_member)
-- Last, because it may remove the key: see write_delta.
redis.call('ZREM', events, event)
return {'OK', new_version, now_us, event}
