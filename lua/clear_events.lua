#!lua flags=allow-oom
-- clear_events: remove all events. State stays as it is, and positions go on from where they were.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] if_version   int    expected version; "" = any
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY STALE version
-- COST O(1), and O(N) in the background
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
local now = now_us()

-- Write.
version = version + 1
local is_new = write_header(session, index, session_id, version, last_us, now)
refresh_session(session, nil, index, to_ms(now), ttl_ms, last_us, is_new)
-- Last, for then the key is gone: see write_delta.
redis.call('UNLINK', events)
return {'OK', version, now}
