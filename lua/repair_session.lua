#!lua
-- repair_session: accept what is left of a session whose events or header were lost or damaged. The
-- events that exist become the whole log; header fields that are not valid are rebuilt. A summary
-- is removed if it is not known what it covers.
--
-- KEYS[1] session  session:{app:user}:sid  hash
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
-- KEYS[4] user     userdata:{app:user}     hash
-- KEYS[5] app      appdata:{app}           hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = keep the deadline that is there
-- ARGV[3] event_limit  int    newest events to keep; "0" = all; "" = the session's own
--
-- REPLY OK
-- REPLY NOT_FOUND
-- COST O(log N)
--@include check_tiers
--@include choose_limit
--@include flags_with_room
--@include header_number
--@include refresh_session
--@include remove_summary
--@include server_time_us
--@include to_ms
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, event_limit = ARGV[1], tonumber(ARGV[2]), ARGV[3]

redis.call('ZSCORE', index, session_id)
check_tiers(user, app)
local newest = redis.call('ZRANGE', events, -1, -1, 'WITHSCORES')
local num_events = redis.call('ZCARD', events)
local is_lost = redis.call('HLEN', session) == 0
if is_lost and num_events == 0 then
  return {'NOT_FOUND'}
end
local fields = redis.call('HMGET', session,
  'version', 'created_us', 'last_us', 'event_limit', 'count', 'flags')
local summary = redis.call('HMGET', session,
  'summary', 'compacted_us', 'summary_us', 'summary_events')
local now_us = server_time_us()
local version = math.max((header_number(fields[1]) or 0) + 1, now_us)
local last_us = math.max(header_number(fields[3]) or 0, tonumber(newest[2] or 0))
local created_us = header_number(fields[2]) or now_us
local upto, num_covered = header_number(summary[2]), header_number(summary[4])
local flags = flags_with_room({
  flags = fields[6], count = header_number(fields[5]), event_limit = header_number(fields[4])
}, num_events == 0)
local is_summary_whole = string.find(flags, 'c', 1, true) and summary[1] and upto
  and header_number(summary[3]) and num_covered
local limit = choose_limit(header_number(event_limit), header_number(fields[4]), num_events)

-- Write.
redis.call('HSET', session, 'version', version, 'created_us', created_us, 'updated_us', now_us,
  'last_us', last_us, 'deadline_ms', 0, 'count', num_events, 'event_limit', limit,
  'flags', flags)
if is_summary_whole then
  local covered = redis.call('ZCOUNT', events, '-inf', upto)
  redis.call('HSET', session,
    'covered', covered, 'summary_events', math.max(num_covered, covered))
else
  remove_summary(session, flags)
end
local is_new_member = redis.call('ZADD', index, now_us, session_id) == 1
local deadline_ms = redis.call('PEXPIRETIME', events)
if is_lost and deadline_ms > 0 then
  redis.call('PEXPIREAT', session, deadline_ms)
end
refresh_session(session, events, index, to_ms(now_us), ttl_ms, last_us, is_new_member)
return {'OK'}
