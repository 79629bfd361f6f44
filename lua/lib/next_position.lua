-- next_position: where an event goes in the log: its timestamp, but never in the future and always
-- after the last event.
local function next_position(timestamp_us, last_us, now_us)
  if timestamp_us > now_us then
    timestamp_us = now_us
  end
  if timestamp_us <= last_us then
    return last_us + 1
  end
  return timestamp_us
end
