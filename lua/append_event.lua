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
-- ARGV[3] event_limit   int    newest events to keep; "0" = all
-- ARGV[4] condition     bytes  a version, or "t" and a token; "" = no condition
-- ARGV[5] event         bytes  encoded
-- ARGV[6] timestamp_us  int    when the event happened
-- ARGV[7...] tail       bytes  its state change, as fold_changes reads it; nothing if it has none
--
-- REPLY OK version now_us num_duplicates   num_duplicates: 1 = already stored, nothing changed
-- REPLY ADDED version now_us sums          the event has increments; sums: the new values, as text
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                               the caller does not hold the turn
-- REPLY NOT_INTEGER key field              the value cannot be incremented
-- REPLY OUT_OF_RANGE key field             the value or the sum is not below 2^53
-- COST O(log N)
--
-- An event without state takes the fast path, down to the line `Slow path`. It is most of the
-- server's work, and each Lua function call costs CPU time. So the fast path inlines fragments, and
-- names each in a comment. benchmarks/bench_scripts.py measures it.
local call = redis.call
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], ARGV[2] + 0
local event_limit, condition = ARGV[3], ARGV[4]
local event, position = ARGV[5], ARGV[6]
local tail = 7

-- Inlined: read_header. ZADD below checks the types of the other keys.
local header = call('HMGET', session, 'version', 'last_us', 'deadline_ms')
local version = header[1]
if not version then
  return {'NOT_FOUND'}
end
-- Inlined: check_condition. An event that is stored already is accepted: the call is a repeat.
if condition ~= '' and condition ~= version and not call('ZSCORE', events, event) then
  if string.sub(condition, 1, 1) ~= 't' then
    return {'STALE', version + 0}
  elseif string.sub(condition, 2) ~= call('HGET', session, 'turn_token') then
    return {'LOST'}
  end
end
-- Inlined: check_tiers.
if user then
  call('HLEN', user)
end
if app then
  call('HLEN', app)
end
-- Inlined: server_time_us.
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
-- Inlined: next_position. The timestamp stays text, because the server formats numbers slowly.
local last_us = header[2] + 0
if position + 0 > now_us then
  position = now_us
end
if position + 0 <= last_us then
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
  call('HSET', session, 'version', version) -- WAIT needs a write to wait for
  return {'OK', version + 0, now_us, 1}
end
local num_added = redis.pcall('ZADD', index, now_us, session_id)
if num_added ~= 0 and num_added ~= 1 then
  call('ZREM', events, event)
  return num_added
end
-- Inlined: write_header.
version = version + 1
if version < now_us then
  version = now_us
end
call('HSET', session, 'version', version, 'updated_us', now_us, 'last_us', position)
-- Inlined: trim_events.
if event_limit ~= '0' then
  call('ZREMRANGEBYRANK', events, 0, -1 - event_limit)
end
-- Inlined: to_ms, is_due, refresh_session_if_due. The first event creates the key of the events,
-- which has no deadline yet.
local now_ms = (now_us - now_us % 1000) / 1000
local reserve_ms = header[3] - now_ms - ttl_ms
local must_refresh = header[3] == '0' or ttl_ms > 0 and (reserve_ms < 0 or reserve_ms > ttl_ms / 64)
  or last_us == 0 or num_added == 1
if not must_refresh and not num_increments then
  return {'OK', version, now_us, 0}
end

-- Slow path.
--@include refresh_session
--@include write_tiers
if change then
  write_tiers(session, user, app, change, 1, now_ms)
elseif num_increments then
  write_tiers(session, user, app, ARGV, tail + 1, now_ms)
end
if must_refresh then
  refresh_session(session, events, index, now_ms, ttl_ms, tonumber(position), num_added == 1)
end
if sums then
  return {'ADDED', version, now_us, sums}
end
return {'OK', version, now_us, 0}
