-- header_number: a header field as a number; nil unless it is an integer of at most 16 digits.
local function header_number(text)
  return text and #text <= 17 and string.find(text, '^%-?%d+$') and tonumber(text) or nil
end
