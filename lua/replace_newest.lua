#!lua
-- replace_newest: remove the newest events, and oldest ones, and append others in their place. A
-- summary goes too if the newest ones include covered events, or if no event stays.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] event_limit  int    newest events to keep; "0" = all; "" = the session's own limit
-- ARGV[4] condition    bytes  as check_condition reads it; "" = no condition
-- ARGV[5] first_kept   int    number of oldest events to remove
-- ARGV[6] end_kept     int    number of oldest events before the first one to replace
-- ARGV[7...] tail      bytes  0 to 500 new events. Each is: encoded event, timestamp_us
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                          the caller does not hold the turn
-- REPLY OTHER_KEY data_key            of the session; the values have another one
-- REPLY MISSING key expected actual   the log holds fewer events than it should
-- COST O(log N) per new event, O(N) for those that are removed
--@include check_condition
--@include choose_limit
--@include flags_with_room
--@include next_position
--@include note_change
--@include note_trimmed
--@include read_checked_header
--@include read_summary
--@include refresh_session
--@include remove_summary
--@include server_time_us
--@include to_ms
--@include trim_events
--@include wake_watchers
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local event_limit, condition = tonumber(ARGV[3]), ARGV[4]
local first_kept, end_kept = tonumber(ARGV[5]), tonumber(ARGV[6])
local tail = 7

local header, refusal = read_checked_header(session, events, index, session_id, '')
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version, header.flags)
if refusal then
  return refusal
end
local summary
summary, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
local num_events = redis.call('ZCARD', events)
if header.count and header.count > num_events then
  return {'MISSING', events, header.count, num_events}
end
end_kept = math.min(end_kept, num_events)
first_kept = math.min(first_kept, end_kept)
event_limit = choose_limit(event_limit, header.event_limit, num_events)
local first_changed = 0
if first_kept == 0 then
  local first_replaced = redis.call('ZRANGE', events, end_kept, end_kept, 'WITHSCORES')
  first_changed = tonumber(first_replaced[2]) -- nil: no event is removed
end
local now_us = server_time_us()
header.flags = flags_with_room(header, first_kept > 0 or end_kept == 0)

-- Write.
local last_us, num_left, num_before = header.last_us, 0, 0
for number = tail, #ARGV, 2 do
  local position = next_position(tonumber(ARGV[number + 1]), last_us, now_us)
  if redis.call('ZADD', events, 'NX', position, ARGV[number]) == 1 then
    last_us, num_left = position, num_left + 1
  end
end
num_left = num_left + end_kept - first_kept
if num_left > 0 then
  if end_kept < num_events then
    redis.call('ZREMRANGEBYRANK', events, end_kept, num_events - 1)
  end
  if first_kept > 0 then
    redis.call('ZREMRANGEBYRANK', events, 0, first_kept - 1)
  end
  num_before = num_left
  note_trimmed(session, header.flags, events, event_limit)
  num_left = trim_events(events, event_limit, num_left)
end
redis.call('HSET', session, 'count', num_left, 'event_limit', event_limit, 'removed_us', now_us,
  'flags', header.flags)
if summary and (end_kept < summary.covered or first_kept == end_kept) then
  remove_summary(session, header.flags)
elseif summary then
  local num_removed = first_kept + num_before - num_left
  redis.call('HSET', session, 'covered', math.max(summary.covered - num_removed, 0))
end
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, last_us, now_us)
if first_changed then
  note_change(
    session, header.flags, new_version, first_changed, header.last_us, to_ms(now_us)
  )
else
  wake_watchers(session, header.flags, to_ms(now_us))
end
local remaining = num_left > 0 and events or nil
refresh_session(session, remaining, index, to_ms(now_us), ttl_ms, last_us, is_new_member)
if num_left == 0 then
  -- Last, because it removes the key: see write_delta.
  redis.call('UNLINK', events)
end
return {'OK', new_version, now_us}
