#!lua flags=no-writes
-- run_reads: read commands carried out as one atomic step. What a transaction does faster, but a
-- server out of memory queues no commands, not even reads.
--
-- KEYS[1...] keys  any    one per command, in order
--
-- ARGV[1...] tail  bytes  per command: number of arguments behind its key, name, the arguments
--
-- REPLY OK replies
-- COST that of the commands, and of carrying their replies through Lua
local tail = 1

local replies, at = {}, tail
for number = 1, #KEYS do
  local last = at + 1 + ARGV[at]
  replies[number] = redis.call(ARGV[at + 1], KEYS[number], unpack(ARGV, at + 2, last))
  at = last + 1
end
return {'OK', replies}
