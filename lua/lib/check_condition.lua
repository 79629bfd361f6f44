-- check_condition: the reply that refuses the call, or nil if its condition holds.
-- A condition is "" (none), a version that the session must have, or "t" and a fencing token: the
-- caller must hold the session's turn.
--
-- REPLY STALE version
-- REPLY LOST
local function check_condition(session, condition, version)
  if condition == '' then
    return nil
  elseif string.sub(condition, 1, 1) == 't' then
    if string.sub(condition, 2) ~= redis.call('HGET', session, 'turn_token') then
      return {'LOST'}
    end
  elseif tonumber(condition) ~= version then
    return {'STALE', version}
  end
  return nil
end
