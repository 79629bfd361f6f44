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
-- ARGV[3] event_limit  int    newest events to keep; "0" = all
-- ARGV[4] condition    bytes  "" = none; a version, or "t" and a token: see check_condition
-- ARGV[5...] tail      bytes  1 to 500 events. Each is: encoded event, timestamp_us, number of
--                             arguments of its state change (0 = none), the change, as fold_changes
--                             reads it
--
-- REPLY OK version now_us num_duplicates   num_duplicates: events stored before, and so ignored
-- REPLY ADDED version now_us sums          all are new, some with increments; sums: the new values
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                               the caller does not hold the turn
-- REPLY NOT_INTEGER key field              the value cannot be incremented
-- REPLY OUT_OF_RANGE key field             the value or the sum is not below 2^53
-- COST O(log N) an event
--@include check_condition
--@include check_tiers
--@include event_starts
--@include fold_changes
--@include new_changes
--@include next_position
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include trim_events
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local event_limit, condition = tonumber(ARGV[3]), ARGV[4]
local tail = 5

local version, last_us, deadline_ms = read_checked_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
check_tiers(user, app)
local now_us = server_time_us()

local starts, has_increments = event_starts(ARGV, tail)

-- If the log is full and its oldest event is in the batch, the call is a repeat. The first attempt
-- stored the events before that one too, and they have been trimmed since.
local first = 1
if event_limit > 0 and redis.call('ZCARD', events) >= event_limit then
  local oldest = redis.call('ZRANGE', events, 0, 0)[1]
  for number = 1, #starts do
    if ARGV[starts[number]] == oldest then
      first = number
      break
    end
  end
end

-- A repeat of a call that was accepted is accepted again: all its events are stored.
local refusal = check_condition(session, condition, version)
if refusal then
  for number = first, #starts do
    if not redis.call('ZSCORE', events, ARGV[starts[number]]) then
      return refusal
    end
  end
end

-- An increment may be refused, so the sums are computed before the first write.
local hashes, change, sums = {session, user, app}, nil, nil
if has_increments then
  change, sums = fold_changes(hashes, ARGV, new_changes(events, ARGV, starts, first))
  if not change then
    return sums -- a refusal
  end
end

-- Write.
local now_ms = to_ms(now_us)
local is_first, num_duplicates, changes = last_us == 0, first - 1, {}
for number = first, #starts do
  local start = starts[number]
  local position = next_position(tonumber(ARGV[start + 1]), last_us, now_us)
  if redis.call('ZADD', events, 'NX', position, ARGV[start]) == 1 then
    last_us = position
    if ARGV[start + 2] ~= '0' then
      changes[#changes + 1] = start + 3
    end
  else
    num_duplicates = num_duplicates + 1
  end
end
if num_duplicates == #starts then
  redis.call('HSET', session, 'version', version) -- WAIT needs a write to wait for
  return {'OK', tonumber(version), now_us, num_duplicates}
end
if #changes == 1 and not change then
  write_tiers(session, user, app, ARGV, changes[1] + 1, now_ms)
elseif #changes > 0 then
  write_tiers(session, user, app, change or fold_changes(hashes, ARGV, changes), 1, now_ms)
end
trim_events(events, event_limit)
if is_first then
  deadline_ms = 0 -- the key of the events is new and has no deadline
end
local new_version, is_new_member =
  write_header(session, index, session_id, version, last_us, now_us)
refresh_session_if_due(
  session, events, index, deadline_ms, now_ms, ttl_ms, last_us, is_new_member
)
if sums and num_duplicates == 0 then
  return {'ADDED', new_version, now_us, sums}
end
return {'OK', new_version, now_us, num_duplicates}
