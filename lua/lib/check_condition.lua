-- check_condition: the reply that refuses the call, or nil if its condition holds.
-- A condition is "" (none), a version that the session must have, or a letter and a fencing token:
-- the caller must hold the session's turn ("t"), or be the Compactor that summarizes it ("c").
--
-- REPLY STALE version
-- REPLY LOST
local function check_condition(session, condition, version)
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
