#!lua flags=no-writes
-- run_reads: run read commands as one atomic step. A transaction is faster, but a server that is
-- out of memory queues no commands, not even reads.
--
-- KEYS[1...] keys  *  any  one per command, in order
--
-- ARGV[1...] tail  bytes  per command: number of arguments after its key, name, the arguments
--
-- REPLY OK replies
-- COST the commands, and copying their replies through Lua
local tail = 1

local replies, at = {}, tail
for number = 1, #KEYS do
  local last = at + 1 + ARGV[at]
  replies[number] = redis.call(ARGV[at + 1], KEYS[number], unpack(ARGV, at + 2, last))
  at = last + 1
end
return {'OK', replies}
