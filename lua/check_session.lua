#!lua flags=no-writes
-- check_session: whether a session accepts a write. Where the app tier has a slot of its own, its
-- state is written between this check and the write to the session.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
--
-- ARGV[1] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[2] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[3...] tail     bytes  the encoded events that the write appends, if any
--
-- REPLY OK stored       stored: 1 or 0 for each event, 1 = it is stored already
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST            the caller does not hold the turn
-- REPLY OTHER_KEY data_key   of the session; the values have another one
-- COST O(log N) an event
--@include check_condition
--@include read_header
local session, events = KEYS[1], KEYS[2]
local created_us, condition = ARGV[1], ARGV[2]
local tail = 3

local header, refusal = read_header(session, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
local stored, is_repeat = {}, #ARGV >= tail
for number = tail, #ARGV do
  local is_stored = redis.call('ZSCORE', events, ARGV[number])
  stored[#stored + 1] = is_stored and 1 or 0
  is_repeat = is_repeat and is_stored
end
-- A repeat of a call that was accepted is accepted again.
refusal = check_condition(session, condition, header.version, header.flags)
if refusal and not is_repeat then
  return refusal
end
return {'OK', stored}
