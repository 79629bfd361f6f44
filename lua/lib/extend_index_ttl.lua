-- extend_index_ttl: keep the index at least as long as a session with this deadline; -1 = forever.
-- Returns whether the index now has this deadline.
-- is_new_member: ZADD has just added the session to the index.
local function extend_index_ttl(index, deadline_ms, is_new_member)
  if deadline_ms < 0 then
    redis.call('PERSIST', index)
    return true
  elseif is_new_member and redis.call('ZCARD', index) == 1 then
    -- The index is new. GT would not set it: for GT, no deadline is an infinite one.
    return redis.call('PEXPIREAT', index, deadline_ms) == 1
  end
  return redis.call('PEXPIREAT', index, deadline_ms, 'GT') == 1
end
