#!lua
-- append_events: append events in order, apply their state deltas, trim to the limit.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash   optional
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] event_limit  int    newest events to keep; "0" = all
-- ARGV[4] condition    bytes  "" = none; a version, which must be the session's; "t" and a fencing
--                             token, which must be that of the session's turn
-- ARGV[5...] tail      bytes  1 to 500 events: encoded, timestamp_us, number of arguments of its
--                             state change, which is none or as write_tiers reads it
--
-- REPLY OK version now_us num_duplicates       num_duplicates: events that were there already, and so ignored
-- REPLY NOT_FOUND
-- REPLY STALE version
-- REPLY LOST                            the turn belongs to somebody else
-- COST O(log N) an event
--@include check_tiers
--@include fold_deltas
--@include is_due
--@include now_us
--@include read_header
--@include refresh_session
--@include to_ms
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local event_limit, condition = tonumber(ARGV[3]), ARGV[4]
local tail, tail_end = 5, #ARGV

local version, last_us, deadline_ms = read_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
check_tiers(user, app)
local now = now_us()

-- If the log is full and its oldest event is in the batch, the call is a repeat: the events before
-- that one were appended then, and have been trimmed.
local first, num_duplicates = tail, 0
if event_limit > 0 and redis.call('ZCARD', events) >= event_limit then
  local oldest = redis.call('ZRANGE', events, 0, 0)[1]
  local at, number = tail, 0
  while at < tail_end do
    if ARGV[at] == oldest then
      first, num_duplicates = at, number
      break
    end
    at, number = at + 3 + ARGV[at + 2], number + 1
  end
end

-- What does not meet the condition is refused, unless it is a repeat of a call that was accepted.
local refusal
if string.sub(condition, 1, 1) == 't' then
  if string.sub(condition, 2) ~= redis.call('HGET', session, 'turn_token') then
    refusal = {'LOST'}
  end
elseif condition ~= '' and condition ~= version then
  refusal = {'STALE', tonumber(version)}
end
if refusal then
  local at = first
  while at < tail_end do
    if not redis.call('ZSCORE', events, ARGV[at]) then
      return refusal
    end
    at = at + 3 + ARGV[at + 2]
  end
end

-- Write.
local now_ms = to_ms(now)
local is_first, added, deltas, at = last_us == 0, false, {}, first
while at < tail_end do
  local position = tonumber(ARGV[at + 1])
  if position > now then
    position = now
  end
  if position <= last_us then
    position = last_us + 1
  end
  local size = tonumber(ARGV[at + 2])
  if redis.call('ZADD', events, 'NX', position, ARGV[at]) == 1 then
    added, last_us = true, position
    if size > 0 then
      deltas[#deltas + 1] = at + 3
    end
  else
    num_duplicates = num_duplicates + 1
  end
  at = at + 3 + size
end
if not added then
  redis.call('HSET', session, 'version', version) -- which makes WAIT wait for the events
  return {'OK', tonumber(version), now, num_duplicates}
end
if #deltas == 1 then
  write_tiers(session, user, app, ARGV, deltas[1], now_ms)
elseif #deltas > 1 then
  local tiers = app and 3 or user and 2 or 1
  write_tiers(session, user, app, fold_deltas(ARGV, deltas, tiers), 1, now_ms)
end
version = version + 1
if event_limit > 0 then
  redis.call('ZREMRANGEBYRANK', events, 0, -event_limit - 1)
end
local is_new = write_header(session, index, session_id, version, last_us, now)
if is_first or is_new or deadline_ms == 0 or is_due(deadline_ms, now_ms, ttl_ms) then
  refresh_session(session, events, index, now_ms, ttl_ms, last_us, is_new)
end
return {'OK', version, now, num_duplicates}
