#!lua
-- append_fragments: keep fragments of an event that is being written, for watchers. The version of
-- the session, its times and its deadlines stay as they are.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] stream   stream:{app:user}:sid   zset
--
-- ARGV[1] created_us     int    when the session was created; "" = whatever session is there
-- ARGV[2] condition      bytes  as check_condition reads it; "" = no condition
-- ARGV[3] ttl_ms         int    how long the fragments are kept
-- ARGV[4] num_fragments  int    1 to 500
-- ARGV[5] fragments      bytes  all of them, encoded together; at most 8 MiB
--
-- REPLY OK sequence   of the last fragment; the same as before if they are stored already
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn
-- REPLY OTHER_KEY data_key  of the session; the values have another one
-- COST O(log N + M) with M entries that are removed, at most 5,000
--
-- A call adds two members with the score of its last fragment. The first one only finds a repeat:
-- "\0", created_us, a space, the SHA-1 of the fragments. The second one is the entry: created_us,
-- last_us (where the log ends), the bytes of all entries before it and num_fragments, each with a
-- space, and the fragments.
--@include check_condition
--@include header_number
--@include server_time_us
--@include to_ms
--@include wake_watchers
local session, stream = KEYS[1], KEYS[2]
local created_us, condition, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local num_fragments, fragments = ARGV[4], ARGV[5]

local function bytes_before(entry)
  return tonumber(string.match(entry, '^%d+ %d+ (%d+) ') or '') or 0
end

local fields = redis.call('HMGET', session, 'version', 'created_us', 'last_us', 'flags')
if not fields[1] or created_us ~= '' and created_us ~= fields[2] then
  return {'NOT_FOUND'}
end
for number, name in ipairs({'version', 'created_us', 'last_us'}) do
  if not header_number(fields[number]) then
    return {'CORRUPT', session, name}
  end
end
local mark = table.concat({'\0', fields[2], ' ', redis.sha1hex(fragments)})
local stored = redis.call('ZSCORE', stream, mark)
if stored then
  return {'OK', tonumber(stored)}
end
local refusal = check_condition(session, condition, tonumber(fields[1]), fields[4])
if refusal then
  return refusal
end
local newest = redis.call('ZRANGE', stream, -1, -1, 'WITHSCORES')
local now_us = server_time_us()
local first = math.max(now_us, (tonumber(newest[2] or '0') or 0) + 1)
local sequence = first + tonumber(num_fragments) - 1
local before = newest[1] and bytes_before(newest[1]) + #newest[1] or 0
local entry = table.concat({
  fields[2], ' ', fields[3], ' ', string.format('%.0f', before), ' ', num_fragments, ' ', fragments,
})

-- Write.
redis.call('ZADD', stream, sequence, mark, sequence, entry)
redis.call('PEXPIREAT', stream, to_ms(now_us) + ttl_ms)
redis.call('ZREMRANGEBYSCORE', stream, '-inf', now_us - ttl_ms * 1000)
local num_entries = redis.call('ZCARD', stream) / 2
while num_entries > 1 do
  local num_bytes = before + #entry - bytes_before(redis.call('ZRANGE', stream, 0, 1)[2])
  if num_entries <= 5000 and num_bytes <= 8388608 then
    break
  end
  redis.call('ZREMRANGEBYRANK', stream, 0, 1)
  num_entries = num_entries - 1
end
wake_watchers(session, fields[4], to_ms(now_us))
return {'OK', sequence}
