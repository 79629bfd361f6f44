#!lua flags=allow-oom
-- touch_session: refresh the deadlines of a session and its tiers. The read itself is plain
-- commands in the same transaction.
--
-- KEYS[1] session  session:{app:user}:sid  hash
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] user_ttl_ms  int    duration for the user tier; "0" = leave expiry alone
-- ARGV[4] app_ttl_ms   int    duration for the app tier; "0" = leave expiry alone
--
-- REPLY OK
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- COST O(1)
--@include check_tiers
--@include is_due
--@include read_header
--@include refresh_session
--@include refresh_tiers
--@include server_time_us
--@include to_ms
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

local header, refusal = read_header(session, '')
if not header then
  return refusal or {'NOT_FOUND'}
end
local now_ms = to_ms(server_time_us())
local is_session_due = is_due(header.deadline_ms, now_ms, ttl_ms)
-- Check only what is written below: most reads write nothing.
if is_session_due then
  redis.call('ZSCORE', index, session_id)
end
if is_session_due or user_ttl_ms > 0 or app_ttl_ms > 0 then
  redis.call('ZCARD', events)
end
check_tiers(user, app)

-- Write.
if is_session_due then
  refresh_session(session, events, index, now_ms, ttl_ms, header.last_us, false)
end
refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
return {'OK'}
