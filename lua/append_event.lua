#!lua
-- append_event: append one event, apply its state change, trim to the limit.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash   optional
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id    bytes  member of the index
-- ARGV[2] ttl_ms        int    duration; "0" = leave expiry alone
-- ARGV[3] event_limit   int    newest events to keep; "0" = all; "" = the session's own limit
-- ARGV[4] condition     bytes  when the session was created, in us; "" = whatever session is there;
--                              then "/" and what check_condition reads, if it has a condition;
--                              then " " and the age in us, if it is sent again: no attempt is older
-- ARGV[5] event         bytes  encoded
-- ARGV[6] timestamp_us  int    when the event happened
-- ARGV[7...] tail       bytes  its state change, as fold_changes reads it; nothing if it has none
--
-- REPLY OK version now_us num_duplicates   1 = it was stored before
-- REPLY ADDED version now_us sums       it has increments; sums: new values, as text
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                               the caller does not hold the turn
-- REPLY OTHER_KEY data_key                 of the session; the values have another one
-- REPLY UNKNOWN                            an earlier attempt may be stored; this one is not
-- REPLY CORRUPT key field
-- REPLY NOT_INTEGER key field              the value cannot be incremented
-- REPLY OUT_OF_RANGE key field             the value or the sum is not below 2^53
-- COST O(log N)
--
-- An event without state takes the fast path, down to the line `Slow path`. It is most of the
-- server's work, so it inlines fragments, and names each in a comment. See bench_scripts.py.
local call = redis.call
local KEYS, ARGV = KEYS, ARGV
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], ARGV[2] + 0
local event_limit, condition, event, position = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local tail = 7

-- Inlined: read_header. ZADD below checks the types of the other keys.
local header
if condition == '' then
  header = call('HMGET', session, 'version', 'last_us', 'deadline_ms', 'event_limit', 'count',
    'flags')
else
  header = call('HMGET', session, 'version', 'last_us', 'deadline_ms', 'event_limit', 'count',
    'flags', 'created_us')
end
if not header[1] then
  return {'NOT_FOUND'}
end
local created_us, asked, age_us, has_key
if condition ~= '' and condition ~= header[7] then
  created_us, asked, age_us = string.match(condition, '^(%d*)/?(%S*) ?(%d*)$')
  if created_us ~= '' and created_us ~= header[7] then
    return {'NOT_FOUND'}
  end
  -- Inlined: check_condition, for an attempt whose condition is only the right data key.
  has_key = age_us == '' and string.byte(asked) == 64 -- @
    and call('HGET', session, 'data_key') == string.sub(asked, 2)
  asked = not has_key and asked or nil
end
-- Inlined: choose_limit.
local limit = event_limit ~= '' and event_limit or header[4]
  or math.max(1000, call('ZCARD', events))
-- A field that is not a number raises a Lua error here, before any write: CorruptData in calls.py.
local version, last_us, deadline_ms = header[1] + 0, header[2] + 0, header[3] + 0
local num_limit = limit + 0
local count = header[5] == limit and num_limit or (header[5] or 0) + 0
local flags, covered, num_before, is_watched = header[6], 0, nil, nil
if flags and flags ~= '' then
  is_watched = string.find(flags, 'l', 1, true)
  asked = asked or not has_key and string.find(flags, 'k', 1, true) and '' -- it has a data key
  if string.find(flags, 'c', 1, true) then -- a summary covers the oldest events
    covered = call('HGET', session, 'covered') + 0
    num_before = math.max(count, call('ZCARD', events))
  end
end
local sum = version + last_us + deadline_ms + count + num_limit + covered
  + (limit ~= header[4] and header[4] or 0)
if sum ~= sum or sum > 1e17 then
  return {'CORRUPT', session, ''}
end
-- Inlined: server_time_us. `now` is the same as text, because the server formats numbers slowly.
local time = call('TIME')
local now = #time[2] == 6 and time[1] .. time[2]
  or string.format('%.0f', time[1] * 1000000 + time[2])
local now_us = now + 0
if asked then
--@include check_batch
--@include check_condition
  age_us = tonumber(age_us) or 0
  local refusal = check_batch(
    session, events, ARGV, {5}, check_condition(session, asked, version, flags),
    age_us, now_us - age_us, {count = count, event_limit = num_limit}
  )
  if refusal then
    return refusal
  end
end
-- Inlined: check_tiers.
if user then
  call('HLEN', user)
end
if app then
  call('HLEN', app)
end
-- Inlined: next_position. The position stays text.
local position_us = position + 0
if position_us > now_us then
  position, position_us = now, now_us
end
if position_us <= last_us then
  position = last_us + 1
end

-- An increment may be refused, so the sums are computed before the first write.
local num_increments, change, sums = ARGV[tail], nil, nil -- nil: no state change
if num_increments and num_increments ~= '0' then
--@include fold_changes
  change, sums = fold_changes({session, user, app}, ARGV, {tail})
  if not change and not call('ZSCORE', events, event) then
    return sums -- a refusal
  end
end

-- Write.
-- If the first ZADD fails, nothing was written. If the second fails, the first is undone.
if call('ZADD', events, 'NX', position, event) == 0 then
  call('HSET', session, 'version', header[1]) -- WAIT needs a write to wait for
  return {'OK', version, now_us, 1}
end
local num_added = redis.pcall('ZADD', index, now, session_id)
if num_added ~= 0 and num_added ~= 1 then
  call('ZREM', events, event)
  return num_added
end
-- Inlined: trim_events, new_count, write_header. If the log was full and no event is missing, one
-- event is removed and the count stays the same.
local new_version, num_missing, num_trimmed = now, 0, 0
version = version + 1
if version < now_us then
  version = now_us
else
  new_version = version
end
-- Inlined: note_trimmed.
if is_watched and num_limit > 0 then
  local rank = -1 - num_limit
  local trimmed_us = call('ZRANGE', events, rank, rank, 'WITHSCORES')[2]
  if trimmed_us then
    call('HSET', session, 'trimmed_us', trimmed_us)
  end
end
if num_limit > 0 and limit == header[5] then
  num_trimmed = call('ZREMRANGEBYRANK', events, -2 - num_limit, -1 - num_limit)
end
if num_trimmed == 1 then
  call('HSET', session, 'version', new_version, 'updated_us', now, 'last_us', position)
else
  local num_events = call('ZCARD', events)
  if header[5] then
    num_missing = count - num_events - num_trimmed + 1
  end
  count = num_events
  if num_limit > 0 and num_events > num_limit then
    local surplus = math.min(num_events - num_limit, 1000 - num_trimmed)
    call('ZREMRANGEBYRANK', events, 0, surplus - 1)
    count = num_events - surplus
  end
  if num_missing > 0 then
    local room = num_limit > 0 and num_limit - count or num_missing
    count = count + math.max(math.min(num_missing, room), 0)
  end
  call('HSET', session,
    'version', new_version, 'updated_us', now, 'last_us', position, 'count', count)
end
if covered > 0 and num_before >= count then -- the oldest have left the log, or were lost
  call('HSET', session, 'covered', math.max(covered - (num_before + 1 - count), 0))
end
if limit ~= header[4] then
  -- Inlined: flags_with_room.
  local old = tonumber(header[4]) or 0
  local is_new = old > 0 and (header[5] or 0) + 0 >= old and not string.match(flags or '', 'f')
  call('HSET', session, 'event_limit', limit, 'flags',
    string.format(is_new and '%sf' or '%s', flags or ''))
end
-- Inlined: to_ms, is_due, refresh_session_if_due. A new key of the events has no deadline yet.
local now_ms = (now_us - now_us % 1000) / 1000
local reserve_ms = deadline_ms - now_ms - ttl_ms
local must_refresh = deadline_ms == 0 or last_us == 0 or num_added == 1 or num_missing > 0
  or ttl_ms > 0 and (reserve_ms < 0 or reserve_ms > ttl_ms / 64)
if not must_refresh and not num_increments then
  -- Inlined: wake_watchers.
  if is_watched and (tonumber(call('HGET', session, 'listen_ms') or '0') or 0) >= now_ms then
    redis.pcall('SPUBLISH', session, '')
  end
  return {'OK', version, now_us, 0}
end

-- Slow path.
--@include refresh_session
--@include wake_watchers
--@include write_tiers
if change then
  write_tiers(session, user, app, change, 1, now_ms)
elseif num_increments then
  write_tiers(session, user, app, ARGV, tail + 1, now_ms)
end
if must_refresh then
  refresh_session(session, events, index, now_ms, ttl_ms, tonumber(position), num_added == 1)
end
wake_watchers(session, flags, now_ms)
if sums then
  return {'ADDED', version, now_us, sums}
end
return {'OK', version, now_us, 0}
