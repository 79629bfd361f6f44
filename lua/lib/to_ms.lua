-- to_ms: whole milliseconds of microseconds.
local function to_ms(us)
  return (us - us % 1000) / 1000
end
