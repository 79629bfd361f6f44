#!lua
-- append_event: append one event, apply its state delta, trim to the limit.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash   optional
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id    bytes  member of the index
-- ARGV[2] ttl_ms        int    duration; "0" = leave expiry alone
-- ARGV[3] event_limit   int    newest events to keep; "0" = all
-- ARGV[4] condition     bytes  "" = none; a version, which must be the session's; "t" and a fencing
--                              token, which must be that of the session's turn
-- ARGV[5] event         bytes  encoded
-- ARGV[6] timestamp_us  int    its time
-- ARGV[7...] tail       bytes  its state change: none, or as write_tiers reads it
--
-- REPLY OK version now_us num_duplicates       num_duplicates: 1 = the event was there already; nothing changed
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                            the turn belongs to somebody else
-- COST O(log N)
--
-- The way of an event without state, from here to the first return, is what a fleet does most.
-- There every call of a command and every local function shows in the server's time, so it has
-- none that it can do without. benchmarks/bench_scripts.py measures it.
local call = redis.call
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], ARGV[2] + 0
local event_limit, condition = ARGV[3], ARGV[4]
local event, position = ARGV[5], ARGV[6]
local tail = 7

local header = call('HMGET', session, 'version', 'last_us', 'deadline_ms')
local version = header[1]
if not version then
  return {'NOT_FOUND'}
end
if condition ~= '' and condition ~= version and not call('ZSCORE', events, event) then
  if string.sub(condition, 1, 1) ~= 't' then
    return {'STALE', version + 0}
  elseif string.sub(condition, 2) ~= call('HGET', session, 'turn_token') then
    return {'LOST'}
  end
end
if user then
  call('HLEN', user)
end
if app then
  call('HLEN', app)
end
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local last_us = header[2] + 0
if position + 0 > now then
  position = now
end
if position + 0 <= last_us then
  position = last_us + 1
end

-- Write.
-- The first two commands fail before anything is written, or what was is taken back.
if call('ZADD', events, 'NX', position, event) == 0 then
  call('HSET', session, 'version', version) -- which makes WAIT wait for the event
  return {'OK', version + 0, now, 1}
end
local moved = redis.pcall('ZADD', index, now, session_id)
if moved ~= 0 and moved ~= 1 then
  call('ZREM', events, event)
  return moved
end
version = version + 1
call('HSET', session, 'version', version, 'updated_us', now, 'last_us', position)
if event_limit ~= '0' then
  call('ZREMRANGEBYRANK', events, 0, -1 - event_limit)
end
local now_ms = (now - now % 1000) / 1000
local reserve_ms = header[3] - now_ms - ttl_ms
local must_refresh = header[3] == '0' or ttl_ms > 0 and (reserve_ms < 0 or reserve_ms > ttl_ms / 64)
  or last_us == 0 or moved == 1
if not must_refresh and not ARGV[tail] then
  return {'OK', version, now, 0}
end

--@include refresh_session
--@include write_tiers
if ARGV[tail] then
  write_tiers(session, user, app, ARGV, tail, now_ms)
end
if must_refresh then
  refresh_session(session, events, index, now_ms, ttl_ms, tonumber(position), moved == 1)
end
return {'OK', version, now, 0}
