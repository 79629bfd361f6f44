-- event_starts: index of the first argument of each event of append_events, and whether any event
-- has increments.
local function event_starts(args, at)
  local starts, has_increments = {}, false
  while at <= #args do
    starts[#starts + 1] = at
    has_increments = has_increments or args[at + 2] ~= '0' and args[at + 3] ~= '0'
    at = at + 3 + args[at + 2]
  end
  return starts, has_increments
end
