#!lua
-- update_tier_state: set, remove and increment state of the user tier or of the app tier.
--
-- KEYS[1] tier  userdata:{app:user}|appdata:{app}  hash
--
-- ARGV[1] ttl_ms     int    duration; "0" = leave expiry alone
-- ARGV[2] if_absent  bool   set only keys that are not there
-- ARGV[3...] tail    bytes  the change, as fold_changes reads it; this tier is number 1
--
-- REPLY OK
-- REPLY ADDED sums              the change has increments; sums: the new values, as text
-- REPLY NOT_INTEGER key field   the value cannot be incremented
-- REPLY OUT_OF_RANGE key field  the value or the sum is not below 2^53
-- COST O(1) per key
--@include fold_changes
--@include server_time_us
--@include to_ms
--@include write_delta
local tier = KEYS[1]
local ttl_ms, if_absent = tonumber(ARGV[1]), ARGV[2] == '1'
local tail = 3

redis.call('HLEN', tier)
local now_ms = to_ms(server_time_us())
local change, change_at, sums = ARGV, tail + 1, nil
if ARGV[tail] ~= '0' then
  change, sums = fold_changes({tier}, ARGV, {tail})
  if not change then
    return sums -- a refusal
  end
  change_at = 1
end

-- Write.
write_delta(tier, change, change_at, ttl_ms, now_ms, if_absent)
if sums then
  return {'ADDED', sums}
end
return {'OK'}
