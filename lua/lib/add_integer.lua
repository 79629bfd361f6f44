-- add_integer: the sum of a state value and an amount, as decimal text; or nil, and the reply that
-- refuses the call. Lua computes exactly below 2^53.
-- value: what the field will hold before the addition; false = it is missing, nil = read it.
--
-- REPLY NOT_INTEGER key field
-- REPLY OUT_OF_RANGE key field
local function add_integer(hash, field, value, amount)
  if value == nil then
    value = redis.call('HGET', hash, field)
  end
  if value and not string.find(value, '^-?%d+$') then
    return nil, {'NOT_INTEGER', hash, field}
  end
  local number = tonumber(value or 0)
  local sum = number + amount
  if math.abs(number) >= 2 ^ 53 or math.abs(sum) >= 2 ^ 53 then
    return nil, {'OUT_OF_RANGE', hash, field}
  end
  return string.format('%.0f', sum)
end
