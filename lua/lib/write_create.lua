--@include extend_index_ttl
--@include ids_to_check
--@include new_deadline
--@include server_time_us
--@include to_ms
--@include write_tiers
-- write_create: write a new session with its initial state, after the caller has removed keys that
-- an earlier session with the same id left behind. Returns ids of the index that should be checked,
-- and the time.
-- data_key: the name of the data key of the session's values; "" = none.
local function write_create(
  session, index, user, app, session_id, ttl_ms, creation_id, event_limit, data_key,
  args, tail
)
  local now_us = server_time_us()
  local now_ms = to_ms(now_us)
  local deadline_ms = ttl_ms > 0 and new_deadline(now_ms, ttl_ms) or -1
  -- What every append reads comes first: the server finds it faster. So `flags` is there even if it
  -- is empty: the server would look for a missing field behind all the state.
  redis.call('HSET', session, 'version', now_us, 'last_us', 0, 'deadline_ms', deadline_ms,
    'event_limit', event_limit ~= '' and event_limit or 1000, 'count', 0,
    'flags', data_key ~= '' and 'k' or '', 'updated_us', now_us, 'created_us', now_us,
    'generation', creation_id)
  if data_key ~= '' then
    redis.call('HSET', session, 'data_key', data_key)
  end
  local is_new_member = redis.call('ZADD', index, now_us, session_id) == 1
  if ttl_ms > 0 then
    redis.call('PEXPIREAT', session, deadline_ms)
  end
  local is_extended = extend_index_ttl(index, deadline_ms, is_new_member)
  write_tiers(session, user, app, args, tail, now_ms)
  return is_new_member and ids_to_check(index, creation_id, is_extended) or {}, now_us
end
