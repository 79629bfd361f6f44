-- Deadlines are absolute milliseconds. A refresh sets them a 64th of the TTL beyond the TTL, and
-- is due only once that reserve is used up: data never goes early, at most ttl / 64 late, and most
-- calls write no deadline at all.

-- due: the deadline to set on a key, or nil while the one it has will do.
local function due(deadline_ms, now_ms, ttl_ms)
  local reserve_ms = math.floor(ttl_ms / 64)
  if deadline_ms >= now_ms + ttl_ms and deadline_ms <= now_ms + ttl_ms + reserve_ms then
    return nil
  end
  return now_ms + ttl_ms + reserve_ms
end
