#!lua flags=allow-oom
-- touch_session: refresh the deadlines of what a read of a session returns. The read itself is
-- plain commands in the same transaction.
--
-- KEYS[1] session  hash
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash
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
--@include is_due
--@include now_us
--@include refresh_session
--@include refresh_tier
--@include to_ms
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

local header = redis.call('HMGET', session, 'version', 'last_us', 'deadline_ms')
if not header[1] then
  return {'NOT_FOUND'}
end
local last_us, deadline_ms = tonumber(header[2]), tonumber(header[3])
local now_ms = to_ms(now_us())
local is_session_due = deadline_ms == 0 or is_due(deadline_ms, now_ms, ttl_ms)
if is_session_due then
  redis.call('ZSCORE', index, session_id)
end
if is_session_due or user_ttl_ms > 0 or app_ttl_ms > 0 then
  redis.call('ZCARD', events)
end
check_tiers(user, app)

-- Write.
if is_session_due then
  refresh_session(session, events, index, now_ms, ttl_ms, last_us, false)
end
refresh_tier(user, now_ms, user_ttl_ms)
if app then
  refresh_tier(app, now_ms, app_ttl_ms)
end
return {'OK'}
