#!lua flags=allow-oom
-- delete_sessions: remove those sessions of a user that existed at a given time, with their events
-- and their entries in the index. Sessions that were created later stay, so repeating it is safe.
--
-- KEYS[1] index    sessions:{app:user}                          zset
-- KEYS[2] user     userdata:{app:user}                          hash  only its type is checked
-- KEYS[3...] keys  session:{app:user}:sid|events:{app:user}:sid  any   both keys of each session
--
-- ARGV[1] existed_us  int    sessions that were created later stay; "0" = now
-- ARGV[2...] tail     bytes  the ids of these sessions, in the order of KEYS; at most 100
--
-- REPLY OK existed_us num_deleted
-- COST O(log N) a session, and O(events) in the background
--@include server_time_us
local index, user = KEYS[1], KEYS[2]
local existed_us = tonumber(ARGV[1])
local tail = 2

redis.call('ZCARD', index)
redis.call('HLEN', user)
if existed_us == 0 then
  existed_us = server_time_us()
end
local found, ids, num_deleted = {}, {}, 0
for at = 3, #KEYS, 2 do
  local events_at = at + 1
  local times = redis.call('HMGET', KEYS[at], 'created_us', 'restored_us')
  local since_us = times[2] or times[1]
  redis.call('ZCARD', KEYS[events_at])
  if not since_us or (tonumber(since_us) or 0) <= existed_us then
    found[#found + 1] = at
    ids[#ids + 1] = ARGV[(at - 3) / 2 + tail]
    num_deleted = num_deleted + redis.call('EXISTS', KEYS[at])
  end
end

-- Write.
for _, at in ipairs(found) do
  local events_at = at + 1
  redis.call('UNLINK', KEYS[at], KEYS[events_at])
end
if #ids > 0 then
  redis.call('ZREM', index, unpack(ids))
end
return {'OK', existed_us, num_deleted}
