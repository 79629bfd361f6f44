-- count_trimmed: how many of the first events of a batch that is sent again were stored and then
-- trimmed. If the oldest event of the log is in the batch, and an attempt of this call stored it,
-- the events before it in the batch were trimmed.
-- starts: index of the first argument of each event.
local function count_trimmed(events, args, starts, since_us)
  local oldest = redis.call('ZRANGE', events, 0, 0, 'WITHSCORES')
  if oldest[1] and tonumber(oldest[2]) >= since_us then
    for number = 1, #starts do
      if args[starts[number]] == oldest[1] then
        return number - 1
      end
    end
  end
  return 0
end
