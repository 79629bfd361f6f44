#!lua
-- set_data_key: store in the header of a session the name of the data key for its next values. It
-- changes no version and no deadline.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
--
-- ARGV[1] data_key  bytes  the name of the key
-- ARGV[2] old_key   bytes  the name that the session must have now; "" = no data key
--
-- REPLY OK
-- REPLY NOT_FOUND
-- REPLY OTHER_KEY data_key   the session has another one
-- COST O(1)
local session = KEYS[1]
local data_key, old_key = ARGV[1], ARGV[2]

local fields = redis.call('HMGET', session, 'version', 'data_key', 'flags')
local stored, flags = fields[2] or '', fields[3] or ''
if not fields[1] then
  return {'NOT_FOUND'}
elseif stored ~= old_key and stored ~= data_key then
  return {'OTHER_KEY', stored}
end

-- Write.
if not string.find(flags, 'k', 1, true) then
  flags = string.format('%sk', flags)
end
redis.call('HSET', session, 'data_key', data_key, 'flags', flags)
return {'OK'}
