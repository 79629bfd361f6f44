#!lua
-- compact_session: store a summary of the oldest events of a session. With drop, remove the events.
--
-- KEYS[1] session  session:{app:user}:sid  hash   must exist
-- KEYS[2] events   events:{app:user}:sid   zset
-- KEYS[3] index    sessions:{app:user}     zset
--
-- ARGV[1] session_id  bytes  member of the index
-- ARGV[2] ttl_ms      int    duration; "0" = leave expiry alone
-- ARGV[3] created_us  int    when the session was created; "" = whatever session is there
-- ARGV[4] condition   bytes  as check_condition reads it; "" = no condition
-- ARGV[5] age_us      int    "" = first attempt; else the age of the call: no attempt is older
-- ARGV[6] upto        int    position of the last event that the summary covers
-- ARGV[7] base        int    `upto` of the summary that is replaced; "" = there is none
-- ARGV[8] drop        bool   remove the covered events
-- ARGV[9] summary     bytes  encoded
--
-- REPLY OK version now_us old_version summary_us covered count
-- REPLY SUPERSEDED base upto   another summary is there than `base`; 0 = none
-- REPLY ABSENT              no event stands at `upto`
-- REPLY MISSING key expected actual   the log holds fewer events than it should
-- REPLY UNKNOWN             an earlier attempt may be stored; this one is not
-- REPLY NOT_FOUND
-- REPLY CORRUPT key field
-- REPLY STALE version
-- REPLY LOST                the caller does not hold the turn or the lease
-- REPLY OTHER_KEY data_key  of the session; the values have another one
-- COST O(log N), and O(M) with M events that are removed
--@include check_condition
--@include flags_with_room
--@include header_number
--@include read_checked_header
--@include read_summary
--@include refresh_session
--@include server_time_us
--@include to_ms
--@include write_header
local session, events, index = KEYS[1], KEYS[2], KEYS[3]
local session_id, ttl_ms, created_us = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local condition, age_us = ARGV[4], tonumber(ARGV[5]) or 0
local upto, base = ARGV[6], tonumber(ARGV[7])
local drop, summary = ARGV[8] == '1', ARGV[9]

local header, refusal = read_checked_header(session, events, index, session_id, created_us)
if not header then
  return refusal or {'NOT_FOUND'}
end
local old
old, refusal = read_summary(session, header.flags)
if refusal then
  return refusal
end
local now_us, num_events = server_time_us(), redis.call('ZCARD', events)
-- A repeat finds its own summary.
local is_repeat = old and old.compacted_us == tonumber(upto)
  and redis.call('HGET', session, 'summary') == summary
if not is_repeat then
  refusal = check_condition(session, condition, header.version, header.flags)
  if not refusal and (old and old.compacted_us) ~= base then
    refusal = {'SUPERSEDED', base or 0, old and old.compacted_us or 0}
  elseif not refusal and header.count and header.count > num_events then
    refusal = {'MISSING', events, header.count, num_events}
  elseif not refusal and tonumber(upto) ~= base
    and redis.call('ZCOUNT', events, upto, upto) == 0 then
    refusal = {'ABSENT'}
  end
  if age_us > 0 then
    -- The first attempt may have stored a summary that others have replaced or removed since.
    local removed_us = header_number(redis.call('HGET', session, 'removed_us') or '0') or now_us
    if refusal or removed_us >= now_us - age_us then
      return {'UNKNOWN'}
    end
  end
  if refusal then
    return refusal
  end
end
local num_covered = redis.call('ZCOUNT', events, '-inf', upto)
local num_dropped = drop and num_covered or 0
local count = math.max(header.count or 0, num_events) - num_dropped
local flags = num_dropped > 0 and flags_with_room(header, true) or header.flags or ''

-- Write.
if is_repeat and num_dropped == 0 then
  redis.call('HSET', session, 'version', header.version) -- WAIT needs a write to wait for
  return {'OK', header.version, now_us, header.version, old.summary_us, old.covered, count}
end
local new_version, is_new_member =
  write_header(session, index, session_id, header.version, header.last_us, now_us)
if is_repeat then
  num_covered = old.covered
else
  local num_gone = old and old.summary_events - old.covered or 0
  redis.call('HSET', session, 'summary', summary, 'compacted_us', upto, 'summary_us', now_us,
    'summary_events', num_covered + num_gone)
  if not old then
    flags = string.format('%sc', flags)
  end
  old = {summary_us = now_us}
end
num_covered = num_covered - num_dropped
redis.call('HSET', session, 'covered', num_covered, 'count', count, 'flags', flags)
if num_dropped > 0 then
  redis.call('HSET', session, 'removed_us', now_us)
  if header.flags and string.find(header.flags, 'l', 1, true) then
    redis.call('HSET', session, 'trimmed_us', upto) -- as note_trimmed does
  end
end
local remaining = num_dropped < num_events and events or nil
refresh_session(session, remaining, index, to_ms(now_us), ttl_ms, header.last_us, is_new_member)
-- Last, because it may remove the key: see write_delta.
if num_dropped > 0 then
  redis.call('ZREMRANGEBYSCORE', events, '-inf', upto)
end
return {'OK', new_version, now_us, header.version, old.summary_us, num_covered, count}
