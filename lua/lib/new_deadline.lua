-- new_deadline: the deadline that a refresh sets: the TTL plus a 64th of it. The reserve means that
-- data never expires early, expires at most ttl / 64 late, and most calls write no deadline.
local function new_deadline(now_ms, ttl_ms)
  return now_ms + ttl_ms + (ttl_ms - ttl_ms % 64) / 64
end
