#!lua
-- update_session_state: set and remove state, in all three tiers at once.
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
-- ARGV[5] if_version   int    expected version; "" = any
-- ARGV[6...] tail      bytes  one delta per tier named in KEYS
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY STALE version
-- COST O(1) a key
--@include check_tiers
--@include close_session
--@include int
--@include is_stale
--@include now_us
--@include open_session
--@include refresh_session
--@include refresh_tiers
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local if_version = ARGV[5]
local tail = 6

local version, last_us = open_session(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
if is_stale(if_version, version) then
  return {'STALE', int(version)}
end
check_tiers(user, app)
local now = now_us()

-- Write.
version = version + 1
write_tiers(session, user, app, ARGV, tail)
local is_new = close_session(session, index, session_id, version, last_us, now)
local now_ms = math.floor(now / 1000)
refresh_session(session, events, index, now_ms, ttl_ms, false, is_new)
refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
return {'OK', int(version), int(now)}
