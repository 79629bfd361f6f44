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
-- ARGV[3] user_ttl_ms  int    likewise, for the user tier; "0" = leave expiry alone
-- ARGV[4] app_ttl_ms   int    likewise, for the app tier
-- ARGV[5] generation   bytes  random; marks the session if this call creates it
-- ARGV[6] refresh      bool   also refresh a session that exists
-- ARGV[7...] tail      bytes  one delta per tier named in KEYS, applied only on create
--
-- REPLY CREATED
-- REPLY OK
-- COST O(1)
--@include check_create
--@include now_us
--@include refresh_session
--@include refresh_tiers
--@include write_create
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local generation, refresh_existing = ARGV[5], ARGV[6] == '1'
local tail = 7

check_create(events, index, session_id, user, app)
local exists = redis.call('HEXISTS', session, 'version') == 1

-- Write.
if exists then
  if refresh_existing then
    local now_ms = math.floor(now_us() / 1000)
    refresh_session(session, events, index, now_ms, ttl_ms, false, false)
    refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
  end
  return {'OK'}
end
local now = write_create(session, events, index, session_id, ttl_ms, generation)
write_tiers(session, user, app, ARGV, tail)
refresh_tiers(user, app, math.floor(now / 1000), user_ttl_ms, app_ttl_ms)
return {'CREATED'}
