#!lua flags=allow-oom
-- delete_session: remove a session, its events and its entry in the index. A session that does not
-- exist is not an error.
--
-- KEYS[1] session  session:{app:user}:sid  hash
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
--
-- REPLY OK
-- COST O(log N), and O(events) in the background
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id = ARGV[1]

redis.call('HLEN', session)
redis.call('ZCARD', events)
redis.call('ZSCORE', index, session_id)

-- Write.
redis.call('UNLINK', session, events)
redis.call('ZREM', index, session_id)
return {'OK'}
