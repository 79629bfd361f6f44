#!lua
-- get_or_create_session: create a session, or refresh the one that exists.
--
-- KEYS[1] session  session:{app:user}:sid  hash
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = a new one never expires, an old one keeps its expiry
-- ARGV[3] creation_id  bytes  random; stored as `generation` if this call creates the session
-- ARGV[4] refresh      bool   refresh a session that exists, and its tiers
-- ARGV[5] user_ttl_ms  int    duration for that refresh of the user tier; "0" = leave expiry alone
-- ARGV[6] app_ttl_ms   int    duration for that refresh of the app tier; "0" = leave expiry alone
-- ARGV[7...] tail      bytes  initial state, as write_tiers reads it
--
-- REPLY CREATED
-- REPLY OK
-- COST O(1)
--@include check_create
--@include read_header
--@include refresh_session_if_due
--@include refresh_tiers
--@include server_time_us
--@include to_ms
--@include write_create
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local refresh = ARGV[4] == '1'
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local tail = 7

check_create(events, index, session_id, user, app)
local version, last_us, deadline_ms = read_header(session)

-- Write.
if not version then
  write_create(session, events, index, user, app, session_id, ttl_ms, creation_id, ARGV, tail)
  return {'CREATED'}
end
if refresh then
  local now_ms = to_ms(server_time_us())
  refresh_session_if_due(session, events, index, deadline_ms, now_ms, ttl_ms, last_us, false)
  refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
end
return {'OK'}
