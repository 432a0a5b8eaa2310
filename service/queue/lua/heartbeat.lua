#!lua flags=allow-oom
-- A worker's heartbeat: announces it for `ttl` ms (0: it leaves), renews the leases that are still its own, and clears
-- away workers that are gone. Returns the server's time and the entries that have been taken over.
local pair, worker = args.pair, args.worker
local time = now()
for _, priority in ipairs(PRIORITIES) do
  redis.pcall('XGROUP', 'CREATE', key('ready', pair, priority), GROUP, 0, 'MKSTREAM') -- fails where it exists
end
redis.call('HSET', key('pairs'), pair, args.info)
redis.call('ZADD', key('workers', pair), time + tonumber(args.ttl), worker)
redis.call('HSET', key('capacity', pair), worker, args.capacity)
redis.call('HSET', key('infos', pair), worker, args.info)

local lost = {time}
for i = 1, #rest, 2 do -- (priority, entry) of each heat it holds
  local ready, entry = key('ready', pair, rest[i]), rest[i + 1]
  if #redis.call('XPENDING', ready, GROUP, entry, entry, 1, worker) == 1 then
    redis.call('XCLAIM', ready, GROUP, worker, 0, entry, 'JUSTID') -- JUSTID: not one delivery more
  else
    lost[#lost + 1] = entry
  end
end

-- A consumer that still has heats stays until others have taken them over: deleting it would lose them.
local gone_workers = redis.call('ZRANGEBYSCORE', key('workers', pair), '-inf', time)
-- An announcement far beyond this one's was made before the server's clock was set back; a live worker makes another.
local ahead = time + math.max(2 * args.ttl, MOST_AHEAD_MS)
for _, stale in ipairs(redis.call('ZRANGEBYSCORE', key('workers', pair), '(' .. ahead, '+inf')) do
  gone_workers[#gone_workers + 1] = stale
end
for _, gone in ipairs(gone_workers) do
  redis.call('HDEL', key('capacity', pair), gone)
  redis.call('HDEL', key('infos', pair), gone)
  local left = 0
  for _, priority in ipairs(PRIORITIES) do
    left = left + #redis.call('XPENDING', key('ready', pair, priority), GROUP, '-', '+', 1, gone)
  end
  if left == 0 then
    for _, priority in ipairs(PRIORITIES) do
      redis.call('XGROUP', 'DELCONSUMER', key('ready', pair, priority), GROUP, gone)
    end
    redis.call('ZREM', key('workers', pair), gone)
  end
end
expire()
dispatch(pair)
return lost
