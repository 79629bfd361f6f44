#!lua
-- restore_session: create a session with the events, positions and times that it had elsewhere.
--
-- KEYS[1] session  session:{app:user}:sid        hash   must not exist, or hold this creation_id
-- KEYS[2] events   events:{app:user}:sid         zset
-- KEYS[3] index    sessions:{app:user}           zset
-- KEYS[4] staged   events:{app:user}:sid:staged  zset   the first events, if stage_events kept some
-- KEYS[5] user     userdata:{app:user}           hash   only its type is checked
-- KEYS[6] app      appdata:{app}                 hash   optional; only its type is checked
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = never expires
-- ARGV[3] creation_id  bytes  digest of all that is restored, stored as `generation`
-- ARGV[4] event_limit  int    newest events to keep; "0" = all; "" = 1,000 or all that there are
-- ARGV[5] created_us   int    "" = updated_us
-- ARGV[6] updated_us   int    "" = now
-- ARGV[7] forked_from  bytes  the session that it is a copy of; "" = it is no copy
-- ARGV[8] upto         int    position up to which a summary covers the log; "" = no summary
-- ARGV[9] summary_us   int    when the summary was stored; "" = no summary
-- ARGV[10] summary     bytes  encoded
-- ARGV[11] data_key    bytes  data key of the session's values; "" = none
-- ARGV[12] num_staged  int    how many events stage_events kept
-- ARGV[13...] tail     bytes  state: number of pairs, key, value, ..., 0; then up to 500 events,
--                             after the staged ones. Each is: position, encoded event
--
-- REPLY OK ids                 ids: up to 256 sessions that may have expired; for prune_index
-- REPLY EXISTS
-- REPLY INCOMPLETE num_staged  other than num_staged events are there
-- COST O(log N) per event of this call
--@include check_create
--@include choose_limit
--@include refresh_session
--@include to_ms
--@include write_create
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local staged, user, app = KEYS[4], KEYS[5], KEYS[6]
local session_id, ttl_ms, creation_id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local event_limit, created_us, updated_us = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local forked_from, upto, summary_us, summary = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local data_key, num_staged = ARGV[11], tonumber(ARGV[12])
local tail = 13

check_create(events, index, session_id, user, app)
local num_found = redis.call('ZCARD', staged)
local stored = redis.call('HMGET', session, 'version', 'generation')
local version = stored[1]
if version and stored[2] ~= creation_id then
  return {'EXISTS'}
elseif not version and num_found ~= num_staged then
  return {'INCOMPLETE', num_found}
end

-- Write.
if version then
  redis.call('HSET', session, 'version', version) -- WAIT needs a write to wait for
  redis.call('UNLINK', staged)
  return {'OK', {}}
end
local first = tail + 2 + 2 * ARGV[tail]
local num_events = num_staged + (#ARGV + 1 - first) / 2
local last_us = first < #ARGV and tonumber(ARGV[#ARGV - 1]) or 0
last_us = math.max(last_us, tonumber(upto) or 0)
event_limit = choose_limit(event_limit, nil, num_events)
redis.call('UNLINK', session, events)
if num_staged > 0 then
  redis.call('RENAME', staged, events) -- first: the server may lack the right to do so
  redis.call('PERSIST', events)
end
local ids, now_us = write_create(
  session, index, nil, nil, session_id, ttl_ms, creation_id, event_limit, data_key, ARGV,
  tail
)
for number = first, #ARGV, 2 do
  redis.call('ZADD', events, ARGV[number], ARGV[number + 1])
end
updated_us = updated_us ~= '' and updated_us or now_us
created_us = created_us ~= '' and created_us or updated_us
redis.call('HSET', session, 'last_us', last_us, 'count', num_events, 'created_us', created_us,
  'updated_us', updated_us, 'restored_us', now_us)
if forked_from ~= '' then
  redis.call('HSET', session, 'forked_from', forked_from)
end
if upto ~= '' then
  local num_covered = redis.call('ZCOUNT', events, '-inf', upto)
  -- Nobody knows whether events that it covers are gone. If one is, a rewind may not remove it.
  redis.call('HSET', session, 'summary', summary, 'compacted_us', upto, 'summary_us', summary_us,
    'covered', num_covered, 'summary_events', num_covered + 1,
    'flags', data_key ~= '' and 'kc' or 'c')
end
redis.call('ZADD', index, updated_us, session_id)
refresh_session(session, events, index, to_ms(now_us), ttl_ms, last_us, false)
return {'OK', ids}
