#!lua
-- replace_event: put another event in the place of one, or remove it. A summary that covers it is
-- removed too, because it may repeat what the event said. A Compactor that is making one loses its
-- lease, and so cannot store it.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[5] position    int    where the event stands
-- ARGV[6] event       bytes  encoded, as it is stored
-- ARGV[7] new_event   bytes  encoded; "" = remove the event
--
-- REPLY OK version now_us
-- REPLY ABSENT              the event does not stand there
-- REPLY DUPLICATE           the new event is stored already
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn
-- REPLY OTHER_KEY data_key  of the session; the values have another one
-- COST O(log N)
--@include check_condition
--@include flags_with_room
--@include lease_fields
--@include note_change
--@include read_checked_header
--@include read_summary
--@include refresh_session
--@include remove_summary
--@include server_time_us
--@include to_ms
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, condition = ARGV[3], ARGV[4]
local position, event, new_event = ARGV[5], ARGV[6], ARGV[7]

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(
  session, condition, header.version, new_event ~= '' and header.flags
)
if refusal then
  return refusal
end
local summary
summary, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
if tonumber(redis.call('ZSCORE', events, event) or '-1') ~= tonumber(position) then
  return {'ABSENT'}
elseif new_event ~= '' and redis.call('ZSCORE', events, new_event) then
  return {'DUPLICATE'}
end
local num_events = redis.call('ZCARD', events)
local now_us = server_time_us()
if new_event == '' then
  header.flags = flags_with_room(header, num_events == 1)
end

-- Write.
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
redis.call('HSET', session, 'removed_us', now_us, 'flags', header.flags or '')
if new_event ~= '' then
  redis.call('ZADD', events, position, new_event)
elseif header.count then
  redis.call('HSET', session, 'count', math.max(header.count, num_events) - 1)
end
position = tonumber(position)
if summary and position <= summary.compacted_us then
  remove_summary(session, header.flags)
end
redis.call('HDEL', session, lease_fields('compactor'))
note_change(session, header.flags, new_version, position, position, to_ms(now_us))
local remaining = (new_event ~= '' or num_events > 1) and events or nil
refresh_session(session, remaining, index, to_ms(now_us), ttl_ms, header.last_us, is_new_member)
-- Last, because it may remove the key: see write_delta.
redis.call('ZREM', events, event)
return {'OK', new_version, now_us}
