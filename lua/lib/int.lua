-- int: a number as decimal digits. `..` and tostring() write large ones as 1.7e+15.
local function int(n)
  return string.format('%.0f', n)
end
