#!lua flags=allow-oom
-- touch_session: refresh the deadlines of what a read of a session returns. The read itself is
-- plain commands in the same transaction.
--
-- KEYS[1] session  hash
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash   optional
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] user_ttl_ms  int    likewise, for the user tier
-- ARGV[4] app_ttl_ms   int    likewise, for the app tier
--
-- REPLY OK
-- REPLY NOT_FOUND
-- COST O(1)
--@include check_tiers
--@include now_us
--@include open_session
--@include refresh_session
--@include refresh_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

if not open_session(session, events, index, session_id) then
  return {'NOT_FOUND'}
end
check_tiers(user, app)
local now_ms = math.floor(now_us() / 1000)

-- Write.
refresh_session(session, events, index, now_ms, ttl_ms, false, false)
refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
return {'OK'}
