#!lua
-- fork_session: copy a session of a user to a new one, with its events up to a position. The
-- summary is copied if the copy has all events that it covers.
--
-- KEYS[1] session      session:{app:user}:sid  hash   must exist
-- KEYS[2] events       events:{app:user}:sid   zset
-- KEYS[3] index        sessions:{app:user}     zset
-- KEYS[4] copy         session:{app:user}:sid  hash   must not exist, or hold the same creation_id
-- KEYS[5] copy_events  events:{app:user}:sid   zset
-- KEYS[6] user         userdata:{app:user}     hash
-- KEYS[7] app          appdata:{app}           hash   optional
--
-- ARGV[1] copy_id      bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = the deadline of the session
-- ARGV[3] created_us   int    when the session was created; "" = whatever session is there
-- ARGV[4] condition    bytes  as check_condition reads it; "" = no condition
-- ARGV[5] first        int    where the events begin that are not copied; "" = copy all
-- ARGV[6] creation_id  bytes  random, stored as `generation`; a retry finds its own copy
-- ARGV[7] origin       bytes  the id of the session, stored in the copy
-- ARGV[8] max_events   int    a longer log is not copied
-- ARGV[9...] tail      bytes  new state: number of pairs, key, value, ...; nothing = it is copied
--
-- REPLY OK
-- REPLY EXISTS
-- REPLY TOO_LONG num_events limit
-- REPLY MISSING key expected actual   the log holds fewer events than it should
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                 the caller does not hold the turn
-- REPLY OTHER_KEY data_key   of the session; the values have another one
-- COST O(N log N) with at most max_events events, and O(S) with S state keys
--@include check_condition
--@include check_tiers
--@include choose_limit
--@include flags_with_room
--@include read_checked_header
--@include read_summary
--@include refresh_session
--@include replace_state
--@include server_time_us
--@include to_ms
local session, events, index, copy, copy_events = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local user, app = KEYS[6], KEYS[7]
local copy_id, ttl_ms, created_us, condition = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local first, creation_id, origin = ARGV[5], ARGV[6], ARGV[7]
local max_events = tonumber(ARGV[8])
local tail = 9

redis.call('ZCARD', copy_events)
check_tiers(user, app)
local stored = redis.call('HMGET', copy, 'version', 'generation')
local version = stored[1]
if version and stored[2] ~= creation_id then
  return {'EXISTS'}
end
local header, num_events, summary
if not version then
  local refusal
  header, refusal = read_checked_header(session, events, index, copy_id, created_us)
  if not header then
    return refusal or {'NOT_FOUND'}
  end
  refusal = check_condition(session, condition, header.version, header.flags)
  if refusal then
    return refusal
  end
  summary, refusal = read_summary(session, header.flags)
  if refusal then
    return refusal
  end
  num_events = redis.call('ZCARD', events)
  if header.count and header.count > num_events then
    return {'MISSING', events, header.count, num_events}
  elseif num_events > max_events then
    return {'TOO_LONG', num_events, max_events}
  end
end
local now_us = server_time_us()

-- Write.
if version then
  redis.call('HSET', copy, 'version', version) -- WAIT needs a write to wait for
  return {'OK'}
end
redis.call('UNLINK', copy, copy_events)
redis.call('COPY', session, copy)
redis.call('COPY', events, copy_events)
local last_us, count = header.last_us, num_events
if first ~= '' then
  count = num_events - redis.call('ZREMRANGEBYSCORE', copy_events, first, '+inf')
  last_us = redis.call('ZRANGE', copy_events, -1, -1, 'WITHSCORES')[2] or 0
end
local fields = {
  version = now_us, created_us = now_us, updated_us = now_us, last_us = last_us, deadline_ms = 0,
  count = count, event_limit = choose_limit(nil, header.event_limit, num_events),
  generation = creation_id, forked_from = origin, flags = '',
}
if summary and (first == '' or summary.compacted_us < tonumber(first)) then
  for field, value in pairs(summary) do
    fields[field] = value
  end
  fields.flags, fields.summary = 'c', redis.call('HGET', copy, 'summary') or ''
  -- Its last events may be gone; what follows in the copy is not covered.
  last_us = math.max(tonumber(last_us), summary.compacted_us)
  fields.last_us = last_us
end
if string.find(flags_with_room(header, count == 0), 'f', 1, true) then
  fields.flags = string.format('f%s', fields.flags)
end
if header.flags and string.find(header.flags, 'k', 1, true) then
  fields.flags = string.format('k%s', fields.flags)
  fields.data_key = redis.call('HGET', copy, 'data_key') or ''
end
for field, value in pairs(fields) do
  redis.call('HSET', copy, field, value)
end
-- The rest of the header, such as its turn, belongs to the session alone.
for _, field in ipairs(redis.call('HKEYS', copy)) do
  if not fields[field] and string.sub(field, 1, 1) ~= '.' then
    redis.call('HDEL', copy, field)
  end
end
replace_state(copy, ARGV, tail)
local is_new_member = redis.call('ZADD', index, now_us, copy_id) == 1
refresh_session(
  copy, copy_events, index, to_ms(now_us), ttl_ms, tonumber(last_us), is_new_member
)
return {'OK'}
