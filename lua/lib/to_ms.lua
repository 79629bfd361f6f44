-- to_ms: microseconds to whole milliseconds, rounded down.
local function to_ms(us)
  return (us - us % 1000) / 1000
end
