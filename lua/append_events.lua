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
-- ARGV[3] user_ttl_ms  int    likewise, for the user tier
-- ARGV[4] app_ttl_ms   int    likewise, for the app tier
-- ARGV[5] event_limit  int    newest events to keep; "0" = all
-- ARGV[6] if_version   int    expected version; "" = any
-- ARGV[7] count        int    number of events, 1 to 500
-- ARGV[8...] tail      bytes  per event: encoded, timestamp_us, one delta per tier named in KEYS
--
-- REPLY OK version now_us repeats       repeats: events that were there already, and so ignored
-- REPLY NOT_FOUND
-- REPLY STALE version
-- COST O(log N) an event
--@include check_tiers
--@include close_session
--@include int
--@include is_stale
--@include now_us
--@include open_session
--@include refresh_session
--@include refresh_tiers
--@include skip_delta
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local event_limit, if_version, count = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local tail = 8

local version, last_us, stored = open_session(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
check_tiers(user, app)
local now = now_us()

-- skip_event: index of the argument behind an event.
local function skip_event(at)
  at = skip_delta(ARGV, at + 2)
  at = user and skip_delta(ARGV, at) or at
  return app and skip_delta(ARGV, at) or at
end

-- Of a batch beyond the limit only the end stays. If that is stored already, the call is a repeat,
-- and the events before it were appended and trimmed then.
local first, at = 1, tail
if event_limit > 0 and count > event_limit then
  local kept, kept_at = count - event_limit + 1, tail
  for _ = 2, kept do
    kept_at = skip_event(kept_at)
  end
  if redis.call('ZSCORE', events, ARGV[kept_at]) then
    first, at = kept, kept_at
  end
end

-- A stale version is refused, unless the call is a repeat of one that was accepted.
if is_stale(if_version, version) then
  local event_at = at
  for _ = first, count do
    if not redis.call('ZSCORE', events, ARGV[event_at]) then
      return {'STALE', int(version)}
    end
    event_at = skip_event(event_at)
  end
end

-- Write.
local added = 0
for _ = first, count do
  local position = math.max(last_us + 1, math.min(tonumber(ARGV[at + 1]), now))
  if redis.call('ZADD', events, 'NX', int(position), ARGV[at]) == 1 then
    added, last_us = added + 1, position
    at = write_tiers(session, user, app, ARGV, at + 2)
  else
    at = skip_event(at)
  end
end
if added > 0 then
  version = version + 1
  if event_limit > 0 and stored + added > event_limit then
    redis.call('ZREMRANGEBYRANK', events, 0, stored + added - event_limit - 1)
  end
  local is_new = close_session(session, index, session_id, version, last_us, now)
  local now_ms = math.floor(now / 1000)
  refresh_session(session, events, index, now_ms, ttl_ms, stored == 0, is_new)
  refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
end
return {'OK', int(version), int(now), count - added}
