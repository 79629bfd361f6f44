#!lua flags=allow-oom
-- touch_tier: refresh the deadline of the user or app tier. The read itself is a plain command in
-- the same transaction.
--
-- KEYS[1] tier  userdata:{app:user}|appdata:{app}  hash
--
-- ARGV[1] ttl_ms  int  duration; "0" = leave expiry alone
--
-- REPLY OK
-- COST O(1)
--@include refresh_tier
--@include server_time_us
--@include to_ms
local tier = KEYS[1]
local ttl_ms = tonumber(ARGV[1])

redis.call('HLEN', tier)
local now_ms = to_ms(server_time_us())

-- Write.
refresh_tier(tier, now_ms, ttl_ms)
return {'OK'}
