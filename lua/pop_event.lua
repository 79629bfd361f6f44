#!lua flags=allow-oom
-- pop_event: remove the newest event and hand it back. State stays as it is.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] if_version   int    expected version; "" = any
--
-- REPLY OK version now_us event
-- REPLY EMPTY
-- REPLY NOT_FOUND
-- REPLY STALE version
-- COST O(log N)
--@include now_us
--@include read_header
--@include refresh_session
--@include to_ms
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms, if_version = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local version, last_us = read_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
if if_version ~= '' and if_version ~= version then
  return {'STALE', tonumber(version)}
end
local newest = redis.call('ZRANGE', events, -2, -1)
local event = newest[#newest]
if not event then
  return {'EMPTY'}
end
local now = now_us()

-- Write.
version = version + 1
local is_new = write_header(session, index, session_id, version, last_us, now)
local remaining = #newest > 1 and events or nil
refresh_session(session, remaining, index, to_ms(now), ttl_ms, last_us, is_new)
-- Last, for then the key of the events may be gone: see write_delta.
redis.call('ZREM', events, event)
return {'OK', version, now, event}
