--@include int
-- cover: let the index live at least as long as a session with this deadline (-1: forever).
local function cover(index, deadline_ms, is_new)
  if deadline_ms < 0 then
    redis.call('PERSIST', index)
  elseif is_new then
    redis.call('PEXPIREAT', index, int(deadline_ms))
  else
    redis.call('PEXPIREAT', index, int(deadline_ms), 'GT')
  end
end
