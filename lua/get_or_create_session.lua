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
-- ARGV[4] event_limit  int    newest events that a new session keeps; "0" = all; "" = 1,000
-- ARGV[5] data_key     bytes  data key of a new session's values; "" = none
-- ARGV[6] refresh      bool   refresh a session that exists, and its tiers
-- ARGV[7] user_ttl_ms  int    duration for that refresh of the user tier; "0" = leave expiry alone
-- ARGV[8] app_ttl_ms   int    duration for that refresh of the app tier; "0" = leave expiry alone
-- ARGV[9...] tail      bytes  initial state, as write_tiers reads it
--
-- REPLY CREATED ids        ids: up to 256 sessions that may have expired; for prune_index
-- REPLY OK
-- REPLY CORRUPT key field   also if events are there without a header
-- COST O(log N)
--@include check_create
--@include read_header
--@include refresh_session_if_due
--@include refresh_tiers
--@include server_time_us
--@include to_ms
--@include write_create
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local event_limit, data_key, refresh = ARGV[4], ARGV[5], ARGV[6] == '1'
local user_ttl_ms, app_ttl_ms = tonumber(ARGV[7]), tonumber(ARGV[8])
local tail = 9

check_create(events, index, session_id, user, app)
local header, refusal = read_header(session, '')
if refusal then
  return refusal
elseif not header and redis.call('ZCARD', events) > 0 then
  return {'CORRUPT', session, 'version'}
end

-- Write.
if not header then
  redis.call('UNLINK', session, events)
  local ids = write_create(
    session, index, user, app, session_id, ttl_ms, creation_id, event_limit, data_key, ARGV,
    tail
  )
  return {'CREATED', ids}
end
if refresh then
  local now_ms = to_ms(server_time_us())
  refresh_session_if_due(
    session, events, index, header.deadline_ms, now_ms, ttl_ms, header.last_us, false
  )
  refresh_tiers(user, app, now_ms, user_ttl_ms, app_ttl_ms)
end
return {'OK'}
