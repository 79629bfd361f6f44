#!lua
-- create_session: create a session, empty but for its state.
--
-- KEYS[1] session  hash   must not exist, or hold the same creation_id (field `generation`)
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = never expires
-- ARGV[3] creation_id   bytes  random; a call that is sent again finds its own
-- ARGV[4...] tail      bytes  initial state, as write_tiers reads it
--
-- REPLY OK
-- REPLY EXISTS
-- COST O(1)
--@include check_create
--@include write_create
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local tail = 4

check_create(events, index, session_id, user, app)
local header = redis.call('HMGET', session, 'version', 'generation')
if header[1] and header[2] ~= creation_id then
  return {'EXISTS'}
end

-- Write.
if header[1] then
  redis.call('HSET', session, 'version', header[1]) -- which makes WAIT wait for the session
  return {'OK'}
end
write_create(session, events, index, user, app, session_id, ttl_ms, creation_id, ARGV, tail)
return {'OK'}
