-- new_deadline: the deadline that a refresh sets. It lies a 64th of the TTL beyond the TTL, so that
-- data never goes early, at most ttl / 64 late, and most calls have no deadline to write.
local function new_deadline(now_ms, ttl_ms)
  return now_ms + ttl_ms + (ttl_ms - ttl_ms % 64) / 64
end
