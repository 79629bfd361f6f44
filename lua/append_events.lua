#!lua
-- append_events: append events in order, apply their state changes, trim to the limit.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash   optional
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] created_us   int    when the session was created; "" = whatever session is there
-- ARGV[4] event_limit  int    newest events to keep; "0" = all; "" = the session's own limit
-- ARGV[5] condition    bytes  as check_condition reads it; "" = no condition
-- ARGV[6] age_us       int    "" = first attempt; else the age of the call: no attempt is older
-- ARGV[7...] tail      bytes  1 to 500 events. Each is: encoded event, timestamp_us, number of
--                             arguments of its state change (0 = none), the change, as fold_changes
--                             reads it
--
-- REPLY OK version now_us num_duplicates   num_duplicates: stored before, so ignored
-- REPLY ADDED version now_us sums   all are new, some with increments; sums: new values
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                               the caller does not hold the turn
-- REPLY OTHER_KEY data_key                 of the session; the values have another one
-- REPLY UNKNOWN                            an earlier attempt may be stored; this one is not
-- REPLY CORRUPT key field
-- REPLY NOT_INTEGER key field              the value cannot be incremented
-- REPLY OUT_OF_RANGE key field             the value or the sum is not below 2^53
-- COST O(log N) per event
--@include check_batch
--@include check_condition
--@include check_tiers
--@include choose_limit
--@include event_starts
--@include flags_with_room
--@include fold_changes
--@include new_changes
--@include new_count
--@include next_position
--@include note_trimmed
--@include read_checked_header
--@include read_summary
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include trim_events
--@include wake_watchers
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, created_us = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local event_limit, condition, age_us = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]) or 0
local tail = 7

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
local summary
summary, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
check_tiers(user, app)
local now_us = server_time_us()

local starts, has_increments = event_starts(ARGV, tail)

local num_events, last_us = redis.call('ZCARD', events), header.last_us
event_limit = choose_limit(event_limit, header.event_limit, num_events)
local count, num_duplicates = header.count or num_events, 0
refusal = check_batch(
  session, events, ARGV, starts, check_condition(session, condition, header.version, header.flags),
  age_us, now_us - age_us, {count = count, event_limit = event_limit}
)
if refusal then
  return refusal
end

-- An increment may be refused, so the sums are computed before the first write.
local hashes, change, sums = {session, user, app}, nil, nil
if has_increments then
  change, sums = fold_changes(hashes, ARGV, new_changes(events, ARGV, starts))
  if not change then
    return sums -- a refusal
  end
end

-- Write.
local now_ms = to_ms(now_us)
local is_first, num_stored, changes = last_us == 0, 0, {}
for number = 1, #starts do
  local start = starts[number]
  local position = next_position(tonumber(ARGV[start + 1]), last_us, now_us)
  if redis.call('ZADD', events, 'NX', position, ARGV[start]) == 1 then
    last_us, num_stored = position, num_stored + 1
    if ARGV[start + 2] ~= '0' then
      changes[#changes + 1] = start + 3
    end
  else
    num_duplicates = num_duplicates + 1
  end
end
if num_stored == 0 then
  redis.call('HSET', session, 'version', header.version) -- WAIT needs a write to wait for
  return {'OK', header.version, now_us, num_duplicates}
end
if #changes == 1 and not change then
  write_tiers(session, user, app, ARGV, changes[1] + 1, now_ms)
elseif #changes > 0 then
  write_tiers(session, user, app, change or fold_changes(hashes, ARGV, changes), 1, now_ms)
end
local num_missing, num_before = math.max(count - num_events, 0), math.max(count, num_events)
note_trimmed(session, header.flags, events, event_limit)
num_events = trim_events(events, event_limit, redis.call('ZCARD', events))
count = new_count(num_events, num_missing, event_limit)
redis.call('HSET', session, 'count', count, 'event_limit', event_limit)
if event_limit ~= header.event_limit then
  redis.call('HSET', session, 'flags', flags_with_room(header))
end
if summary then
  local num_removed = num_before + num_stored - count
  redis.call('HSET', session, 'covered', math.max(summary.covered - num_removed, 0))
end
local deadline_ms = header.deadline_ms
if is_first or num_missing > 0 then
  deadline_ms = 0 -- the key of the events is new and has no deadline
end
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, last_us, now_us)
refresh_session_if_due(
  session, events, index, deadline_ms, now_ms, ttl_ms, last_us, is_new_member
)
wake_watchers(session, header.flags, now_ms)
if sums and num_duplicates == 0 then
  return {'ADDED', new_version, now_us, sums}
end
return {'OK', new_version, now_us, num_duplicates}
