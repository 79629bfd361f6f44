-- count_trimmed: how many events of a batch that is sent again are known to have been stored and
-- then trimmed: those before the oldest event of the log, if an attempt of this call has stored it.
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
