-- write_header: write the header and move the session to the front of the index.
-- True if the index did not hold the session before.
local function write_header(session, index, session_id, version, last_us, now)
  redis.call('HSET', session, 'version', version, 'updated_us', now, 'last_us', last_us)
  return redis.call('ZADD', index, now, session_id) == 1
end
