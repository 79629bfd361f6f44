-- ids_to_check: up to 256 ids of the index to look at after a session was added. The caller removes
-- those whose sessions have expired: nothing else would if nobody lists the sessions.
-- It returns some when the index has grown to a multiple of 64: a part at random, because sessions
-- that only reads keep alive may hold the oldest places. It returns all when the index has no
-- deadline, but the new session has one: sessions that never expire may be gone.
-- is_extended: the index got the deadline of the new session.
local function ids_to_check(index, creation_id, is_extended)
  local num_sessions = redis.call('ZCARD', index)
  local lacks_deadline = not is_extended and num_sessions <= 256
    and redis.call('PEXPIRETIME', index) == -1
  if num_sessions % 64 ~= 0 and not lacks_deadline then
    return {}
  end
  local random = tonumber(string.sub(creation_id, 1, 8), 16) or 0
  local first = random % math.max(num_sessions - 255, 1)
  return redis.call('ZRANGE', index, first, first + 255)
end
