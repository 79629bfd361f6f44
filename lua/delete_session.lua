#!lua flags=allow-oom
-- delete_session: remove a session, its events and its entry in the index. A session that does not
-- exist is not an error.
--
-- KEYS[1] session  session:{app:user}:sid  hash
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] age_us      int    "" = first attempt; else the age of the call: no attempt is older
-- ARGV[3] data_key    bytes  a session with another data key stays; "" = delete it in any case
--
-- REPLY OK
-- REPLY UNKNOWN   the first attempt may have deleted an earlier session; this one is newer
-- COST O(log N), and O(events) in the background
--@include header_number
--@include server_time_us
--@include to_ms
--@include wake_watchers
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, age_us, data_key = ARGV[1], tonumber(ARGV[2]) or 0, ARGV[3]

redis.call('HLEN', session)
redis.call('ZCARD', events)
redis.call('ZSCORE', index, session_id)
local flags = redis.call('HGET', session, 'flags')
if data_key ~= '' and redis.call('HGET', session, 'data_key') ~= data_key then
  return {'OK'}
end
if age_us > 0 then
  -- A session that was restored has the creation time that it had elsewhere.
  local times = redis.call('HMGET', session, 'created_us', 'restored_us')
  local existed_us = header_number(times[2] or times[1])
  if existed_us and existed_us > server_time_us() - age_us then
    return {'UNKNOWN'}
  end
end

-- Write.
if flags then
  wake_watchers(session, flags, to_ms(server_time_us()))
end
redis.call('UNLINK', session, events)
redis.call('ZREM', index, session_id)
return {'OK'}
