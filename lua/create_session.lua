#!lua
-- create_session: create a session with its state and no events.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must not exist, or hold the same creation_id
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = never expires
-- ARGV[3] creation_id  bytes  random, stored as `generation`; a retry finds its own session
-- ARGV[4] event_limit  int    newest events to keep; "0" = all; "" = 1,000
-- ARGV[5] data_key     bytes  data key of the session's values; "" = none
-- ARGV[6...] tail      bytes  initial state, as write_tiers reads it
--
-- REPLY OK ids   ids: up to 256 sessions that may have expired; for prune_index
-- REPLY EXISTS
-- COST O(log N)
--@include check_create
--@include write_create
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local event_limit, data_key = ARGV[4], ARGV[5]
local tail = 6

check_create(events, index, session_id, user, app)
local stored = redis.call('HMGET', session, 'version', 'generation')
local version, stored_creation_id = stored[1], stored[2]
if version and stored_creation_id ~= creation_id then
  return {'EXISTS'}
end

-- Write.
if version then
  redis.call('HSET', session, 'version', version) -- WAIT needs a write to wait for
  return {'OK', {}}
end
redis.call('UNLINK', session, events)
local ids = write_create(
  session, index, user, app, session_id, ttl_ms, creation_id, event_limit, data_key, ARGV,
  tail
)
return {'OK', ids}
