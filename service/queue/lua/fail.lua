#!lua flags=allow-oom
-- A claimed heat comes back unfinished. `fate`: "back" (handed back, no delivery), "again" (one delivery spent) or
-- "dead" (the job fails with `reason`, the heat goes to the dead-letter stream).
local pair, class, entry, count, job, heat = unpack(ARGV, 1, 6)
local worker, deliveries, fate, reason = ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10]
if #redis.call('XPENDING', key('ready', pair, class), GROUP, entry, entry, 1, worker) == 0 then
  return 'lost' -- another worker has taken it over
end
release(pair, class, entry, count)
if wanted(job, heat) then
  if fate == 'dead' then
    redis.call('XADD', key('dead'), 'MAXLEN', '~', DEAD_KEPT, '*',
      'job', job, 'heat', heat, 'deliveries', deliveries, 'worker', worker, 'reason', reason)
    local decided = redis.call('HGET', key('job', job), 'decided')
    if decided and decided ~= heat then -- the job may end before it comes to this heat
      redis.call('HSET', key('job', job), 'dead:' .. heat, reason)
    else
      give_up(job, reason)
    end
  else
    add(pair, class, job, heat, count, fate == 'back' and deliveries - 1 or deliveries)
  end
end
deal(pair)
return fate
