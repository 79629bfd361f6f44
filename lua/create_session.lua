#!lua
-- create_session: create a session, empty but for its state.
--
-- KEYS[1] session  hash   must not exist, or hold the same generation
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = never expires
-- ARGV[3] user_ttl_ms  int    likewise, for the user tier; "0" = leave expiry alone
-- ARGV[4] app_ttl_ms   int    likewise, for the app tier
-- ARGV[5] generation   bytes  random; a call that is sent again finds its own
-- ARGV[6...] tail      bytes  one delta per tier named in KEYS
--
-- REPLY OK
-- REPLY EXISTS
-- COST O(1)
--@include check_create
--@include refresh_tiers
--@include write_create
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local generation = ARGV[5]
local tail = 6

check_create(events, index, session_id, user, app)
local header = redis.call('HMGET', session, 'version', 'generation')
if header[1] then
  if header[2] == generation then
    return {'OK'}
  end
  return {'EXISTS'}
end

-- Write.
local now = write_create(session, events, index, session_id, ttl_ms, generation)
write_tiers(session, user, app, ARGV, tail)
refresh_tiers(user, app, math.floor(now / 1000), user_ttl_ms, app_ttl_ms)
return {'OK'}
