#!lua
-- get_or_create_session: create a session unless it exists; an existing one is only refreshed.
--
-- KEYS[1] session  hash
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration for a new session; "0" = never expires
-- ARGV[3] creation_id   bytes  random; marks the session if this call creates it
-- ARGV[4] refresh      bool   also refresh a session that exists
-- ARGV[5] user_ttl_ms  int    duration, for refreshing the user tier; "0" = leave expiry alone
-- ARGV[6] app_ttl_ms   int    likewise, for the app tier
-- ARGV[7...] tail      bytes  initial state, as write_tiers reads it
--
-- REPLY CREATED
-- REPLY OK
-- COST O(1)
--@include check_create
--@include is_due
--@include now_us
--@include refresh_session
--@include refresh_tier
--@include to_ms
--@include write_create
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local refresh = ARGV[4] == '1'
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local tail = 7

check_create(events, index, session_id, user, app)
local header = redis.call('HMGET', session, 'version', 'last_us', 'deadline_ms')

-- Write.
if not header[1] then
  write_create(session, events, index, user, app, session_id, ttl_ms, creation_id, ARGV, tail)
  return {'CREATED'}
end
if refresh then
  local now_ms = to_ms(now_us())
  local last_us, deadline_ms = tonumber(header[2]), tonumber(header[3])
  if deadline_ms == 0 or is_due(deadline_ms, now_ms, ttl_ms) then
    refresh_session(session, events, index, now_ms, ttl_ms, last_us, false)
  end
  refresh_tier(user, now_ms, user_ttl_ms)
  if app then
    refresh_tier(app, now_ms, app_ttl_ms)
  end
end
return {'OK'}
