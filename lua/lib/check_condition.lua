-- check_condition: the reply that refuses the call, or nil if its condition holds.
-- A condition is "" (none), a version that the session must have, or a letter and a fencing token:
-- the caller must hold the session's turn ("t"), or be the Compactor that summarizes it ("c").
-- After an "@" stands the data key of the values that the call writes: the session must have it.
-- flags: the session's flags, if the call writes values. "k": the session has a data key.
--
-- REPLY STALE version
-- REPLY LOST
-- REPLY OTHER_KEY data_key
local function check_condition(session, condition, version, flags)
  local first, data_key = string.match(condition, '^([^@]*)@(.*)$')
  if data_key or flags and string.find(flags, 'k', 1, true) then
    condition = first or condition
    local stored = redis.call('HGET', session, 'data_key') or ''
    if stored ~= (data_key or '') then
      return {'OTHER_KEY', stored}
    end
  end
  if condition == '' then
    return nil
  end
  local kind = string.sub(condition, 1, 1)
  local field = kind == 't' and 'turn_token' or kind == 'c' and 'compactor_token'
  if field then
    if string.sub(condition, 2) ~= redis.call('HGET', session, field) then
      return {'LOST'}
    end
  elseif tonumber(condition) ~= version then
    return {'STALE', version}
  end
  return nil
end
