-- write_header: add 1 to the version, write the header, and move the session to the top of the
-- index. Returns the new version, and whether the session is new in the index.
local function write_header(session, index, session_id, version, last_us, now_us)
  version = version + 1
  redis.call('HSET', session, 'version', version, 'updated_us', now_us, 'last_us', last_us)
  return version, redis.call('ZADD', index, now_us, session_id) == 1
end
