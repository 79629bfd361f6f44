#!lua
-- update_tier_state: set and remove state of the user tier or of the app tier.
--
-- KEYS[1] tier  userdata:{app:user}|appdata:{app}  hash
--
-- ARGV[1] ttl_ms   int    duration; "0" = leave expiry alone
-- ARGV[2...] tail  bytes  one delta, as write_delta reads it
--
-- REPLY OK
-- COST O(1) per key
--@include server_time_us
--@include to_ms
--@include write_delta
local tier = KEYS[1]
local ttl_ms = tonumber(ARGV[1])
local tail = 2

redis.call('HLEN', tier)
local now_ms = to_ms(server_time_us())

-- Write.
write_delta(tier, ARGV, tail, ttl_ms, now_ms)
return {'OK'}
