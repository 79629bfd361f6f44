-- write_header: write the header with a new version, and move the session to the top of the index.
-- Returns the new version, and whether the session is new in the index. The time in the version
-- makes it larger than the versions of an earlier session of the same id.
local function write_header(session, index, session_id, version, last_us, now_us)
  version = math.max(version + 1, now_us)
  redis.call('HSET', session, 'version', version, 'updated_us', now_us, 'last_us', last_us)
  return version, redis.call('ZADD', index, now_us, session_id) == 1
end
