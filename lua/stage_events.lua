#!lua
-- stage_events: keep events of a session that restore_session will create. No reader sees them.
--
-- KEYS[1] staged  events:{app:user}:sid:staged  zset
--
-- ARGV[1] ttl_ms   int    how long they are kept
-- ARGV[2...] tail  bytes  1 to 500 events. Each is: position, encoded event
--
-- REPLY OK
-- COST O(log N) per event
--@include server_time_us
--@include to_ms
local staged = KEYS[1]
local ttl_ms = tonumber(ARGV[1])
local tail = 2

redis.call('ZCARD', staged)

-- Write.
for number = tail, #ARGV, 2 do
  redis.call('ZADD', staged, ARGV[number], ARGV[number + 1])
end
redis.call('PEXPIREAT', staged, to_ms(server_time_us()) + ttl_ms)
return {'OK'}
