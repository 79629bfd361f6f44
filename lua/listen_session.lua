#!lua flags=allow-oom
-- listen_session: let writes to the log of a session publish messages for some time, and return
-- what a watcher compares. It changes no version and no deadline.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset   only its type is checked
--
-- ARGV[1] lease_ms  int  how long, unless an earlier call requested a longer time; "0" = publish
--                        nothing, but remember changes of old events from now on
--
-- REPLY OK version created_us last_us changes   the header fields; changes: "" = none
-- REPLY NOT_FOUND
-- COST O(1)
--@include header_number
--@include server_time_us
--@include to_ms
local session, events = KEYS[1], KEYS[2]
local lease_ms = tonumber(ARGV[1])

redis.call('ZCARD', events)
local names = {'version', 'created_us', 'last_us', 'changes', 'flags', 'listen_ms'}
local fields = redis.call('HMGET', session, unpack(names))
local flags, listen_ms = fields[5] or '', header_number(fields[6] or nil) or 0
if not fields[1] then
  return {'NOT_FOUND'}
end
local until_ms = to_ms(server_time_us()) + lease_ms

-- Write.
if lease_ms > 0 and listen_ms < until_ms then
  redis.call('HSET', session, 'listen_ms', until_ms)
end
if not string.find(flags, 'l', 1, true) then
  redis.call('HSET', session, 'flags', table.concat({flags, 'l'}))
end
return {'OK', fields[1], fields[2] or '', fields[3] or '', fields[4] or ''}
