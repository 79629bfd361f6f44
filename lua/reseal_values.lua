#!lua
-- reseal_values: replace stored values (state, summaries, events) with the same values in another
-- encryption. Values that others changed meanwhile stay. It changes no version and no deadline.
--
-- KEYS[1] hash    session:{app:user}:sid|userdata:{app:user}|appdata:{app}|datakey:{app:user} hash
-- KEYS[2] events  events:{app:user}:sid  zset  optional
--
-- ARGV[1] num_fields  int    fields of the hash to change
-- ARGV[2...] tail     bytes  these fields: name, SHA-1 of the stored value, new value; then up to
--                            500 events: position, stored event, new event
--
-- REPLY OK num_changed
-- COST O(1) per field and its length, O(log N) per event
--@include server_time_us
local hash, events = KEYS[1], KEYS[2]
local num_fields = tonumber(ARGV[1])
local tail = 2

local after = tail + 3 * num_fields
local pairs_to_set, swaps = {}, {}
for number = tail, after - 1, 3 do
  local value = redis.call('HGET', hash, ARGV[number])
  if value and redis.sha1hex(value) == ARGV[number + 1] then
    pairs_to_set[#pairs_to_set + 1] = number
  end
end
for number = after, #ARGV, 3 do
  local position = redis.call('ZSCORE', events, ARGV[number + 1])
  if position and tonumber(position) == tonumber(ARGV[number])
    and not redis.call('ZSCORE', events, ARGV[number + 2]) then
    swaps[#swaps + 1] = number
  end
end
local now_us = server_time_us()

-- Write.
for _, number in ipairs(pairs_to_set) do
  redis.call('HSET', hash, ARGV[number], ARGV[number + 2])
end
for _, number in ipairs(swaps) do
  redis.call('ZADD', events, ARGV[number], ARGV[number + 2])
  redis.call('ZREM', events, ARGV[number + 1])
end
if #swaps > 0 then
  redis.call('HSET', hash, 'removed_us', now_us) -- a repeat would not find its event
end
return {'OK', #pairs_to_set + #swaps}
