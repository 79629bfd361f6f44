#!lua
-- acquire_turn: take the turn of a session, or another lease of it, unless another holder has it. A
-- lease has a fencing token.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] holder      bytes  random; a retry of the call finds its own lease
-- ARGV[5] lease_ms    int    duration
-- ARGV[6] lease       bytes  "turn" or "compactor"
--
-- REPLY OK token until_us
-- REPLY TAKEN until_us
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- COST O(1)
--@include header_number
--@include lease_fields
--@include read_checked_header
--@include refresh_session_if_due
--@include server_time_us
--@include to_ms
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms = ARGV[1], tonumber(ARGV[2])
local created_us, holder, lease_ms, lease = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
local token_field, until_field, holder_field, length_field = lease_fields(lease)
local found = redis.call('HMGET', session, token_field, until_field, holder_field, length_field)
local token, until_us = header_number(found[1] or '0'), header_number(found[2] or '0')
local length_ms = header_number(found[4] or '0')
if not token or not until_us or not length_ms then
  local field = not token and token_field or not until_us and until_field or length_field
  return {'CORRUPT', session, field}
end
local now_us = server_time_us()
-- A lease that ends later than its length from now was taken while the clock was ahead. A second
-- more is allowed, because a replica that becomes the primary has a clock of its own.
local longest_us = found[4] and (length_ms + 1000) * 1000 or math.huge
local is_taken = until_us > now_us and until_us - now_us <= longest_us
if is_taken and found[3] ~= holder then
  return {'TAKEN', until_us}
end
if found[3] ~= holder then
  -- The time makes it larger than every token of an earlier session with the same id.
  token = math.max(token + 1, now_us)
end
until_us = now_us + lease_ms * 1000

-- Write.
redis.call('HSET', session, token_field, token, until_field, until_us, length_field, lease_ms,
  holder_field, holder)
refresh_session_if_due(
  session, events, index, header.deadline_ms, to_ms(now_us), ttl_ms, header.last_us, false
)
return {'OK', token, until_us}
