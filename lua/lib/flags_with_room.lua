-- flags_with_room: the flags of a session after a call that leaves room in its log. If the log was
-- full, older events may have been trimmed. Later only flag "f" shows that.
-- header: from read_header, or its flags, count and event_limit.
-- begins_anew: the log is empty now, or begins with a turn, so it does not matter what came before.
local function flags_with_room(header, begins_anew)
  local flags = header.flags or ''
  if begins_anew then
    local others = string.gsub(flags, 'f', '')
    return others
  end
  local limit = header.event_limit or 0
  local is_full = limit > 0 and (header.count or 0) >= limit
  if is_full and not string.find(flags, 'f', 1, true) then
    return string.format('%sf', flags)
  end
  return flags
end
