#!lua flags=allow-oom
-- A worker's beat: announces it for `ttl` ms (0: it leaves), renews the leases that are still its own, and clears
-- away workers that are gone. Returns the entries that have been taken over.
local pair, worker, capacity, card, ttl = unpack(ARGV, 1, 5)
local time = now()
for _, class in ipairs(CLASSES) do
  redis.pcall('XGROUP', 'CREATE', key('ready', pair, class), GROUP, 0, 'MKSTREAM') -- fails where it exists
end
redis.call('HSET', key('pairs'), pair, card)
redis.call('ZADD', key('workers', pair), time + tonumber(ttl), worker)
redis.call('HSET', key('capacity', pair), worker, capacity)
redis.call('HSET', key('cards', pair), worker, card)

local lost = {}
for i = 6, #ARGV, 2 do
  local ready, entry = key('ready', pair, ARGV[i]), ARGV[i + 1]
  if #redis.call('XPENDING', ready, GROUP, entry, entry, 1, worker) == 1 then
    redis.call('XCLAIM', ready, GROUP, worker, 0, entry, 'JUSTID') -- JUSTID: not one delivery more
  else
    lost[#lost + 1] = entry
  end
end

-- A consumer that still has heats stays until others have taken them over: deleting it would lose them.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', key('workers', pair), '-inf', time)) do
  redis.call('HDEL', key('capacity', pair), gone)
  redis.call('HDEL', key('cards', pair), gone)
  local left = 0
  for _, class in ipairs(CLASSES) do
    left = left + #redis.call('XPENDING', key('ready', pair, class), GROUP, '-', '+', 1, gone)
  end
  if left == 0 then
    for _, class in ipairs(CLASSES) do
      redis.call('XGROUP', 'DELCONSUMER', key('ready', pair, class), GROUP, gone)
    end
    redis.call('ZREM', key('workers', pair), gone)
  end
end
expire()
deal(pair)
return lost
