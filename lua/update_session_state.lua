#!lua
-- update_session_state: set and remove state, in all three tiers at once.
--
-- KEYS[1] session  hash   must exist
-- KEYS[2] events   zset
-- KEYS[3] index    zset
-- KEYS[4] user     hash   optional
-- KEYS[5] app      hash   optional
--
-- ARGV[1] session_id   bytes  member of the index
-- ARGV[2] ttl_ms       int    duration; "0" = leave expiry alone
-- ARGV[3] if_version   int    expected version; "" = any
-- ARGV[4...] tail      bytes  the change, as write_tiers reads it
--
-- REPLY OK version now_us
-- REPLY NOT_FOUND
-- REPLY STALE version
-- COST O(1) a key
--@include check_tiers
--@include is_due
--@include now_us
--@include read_header
--@include refresh_session
--@include to_ms
--@include write_header
--@include write_tiers
local session, events, index, user, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session_id, ttl_ms, if_version = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local tail = 4

local version, last_us, deadline_ms = read_header(session, events, index, session_id)
if not version then
  return {'NOT_FOUND'}
end
if if_version ~= '' and if_version ~= version then
  return {'STALE', tonumber(version)}
end
check_tiers(user, app)
local now = now_us()
local now_ms = to_ms(now)

-- Write.
version = version + 1
write_tiers(session, user, app, ARGV, tail, now_ms)
local is_new = write_header(session, index, session_id, version, last_us, now)
if is_new or deadline_ms == 0 or is_due(deadline_ms, now_ms, ttl_ms) then
  refresh_session(session, events, index, now_ms, ttl_ms, last_us, is_new)
end
return {'OK', version, now}
