#!lua
-- change_fields: set, extend and remove state of a session, if other state of it is unchanged. For
-- adapters that keep indexes in state.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[4...] tail     bytes  number of fields to compare; field and SHA-1 of its value, each, "" =
--                            absent; number of fields to extend; field and entry, each; then a
--                            delta, as write_delta reads it
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version      a field that was compared has another value
-- REPLY LOST               never
-- REPLY OTHER_KEY data_key   of the session; the values have another one
-- COST O(1) per field, and the length of the fields that are compared or extended
--@include check_condition
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
--@include write_delta
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms, condition = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local tail = 4

local header, refusal = read_checked_header(session, events, index, session_id, '')
if not header then
  return refusal or {'NOT_FOUND'}
end
refusal = check_condition(session, condition, header.version, header.flags)
if refusal then
  return refusal
end
local extended = tail + 1 + 2 * ARGV[tail]
for pair = tail + 1, extended - 1, 2 do
  local value = redis.call('HGET', session, ARGV[pair])
  if (value and redis.sha1hex(value) or '') ~= ARGV[pair + 1] then
    return {'STALE', header.version}
  end
end
local delta = extended + 1 + 2 * ARGV[extended]
local now_us = server_time_us()

-- Write.
-- An extended field holds raw bytes, so it begins with a zero. A repeat finds its entry.
for pair = extended + 1, delta - 1, 2 do
  local field, entry = ARGV[pair], ARGV[pair + 1]
  local value = redis.call('HGET', session, field) or '\0'
  if not string.find(value, entry, 1, true) then
    redis.call('HSET', session, field, table.concat({value, entry}))
  end
end
write_delta(session, ARGV, delta)
local version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
refresh_session_if_due(
  session, events, index, header.deadline_ms, to_ms(now_us), ttl_ms, header.last_us, is_new_member
)
return {'OK', version, now_us}
