-- new_deadline: the deadline that a refresh sets: the TTL plus a 64th of it. So data never expires
-- early and at most ttl / 64 late, and most calls write no deadline.
local function new_deadline(now_ms, ttl_ms)
  return now_ms + ttl_ms + (ttl_ms - ttl_ms % 64) / 64
end
