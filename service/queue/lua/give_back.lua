#!lua flags=allow-oom
-- A claimed heat comes back unfinished. `outcome`: "released" (handed back, no delivery), "retried" (one delivery spent) or
-- "dead_lettered" (the job fails with `reason`, the heat goes to the dead-letter stream).
local pair, priority, entry, count, job, heat = args.pair, args.priority, args.entry, args.count, args.job, args.heat
local worker, deliveries, outcome, reason = args.worker, tonumber(args.deliveries), args.outcome, args.reason
if #redis.call('XPENDING', key('ready', pair, priority), GROUP, entry, entry, 1, worker) == 0 then
  return 'lost' -- another worker has taken it over
end
release(pair, priority, entry, count)
if wanted(job, heat) then
  if outcome == 'dead_lettered' then
    redis.call('XADD', key('dead_letters'), 'MAXLEN', '~', DEAD_KEPT, '*',
      'job', job, 'heat', heat, 'deliveries', deliveries, 'worker', worker, 'reason', reason)
    local decided, finals = unpack(redis.call('HMGET', key('job', job), 'decided', 'finals'))
    if decided and finals ~= 'due' and tonumber(heat) > (integer(decided) or 0) then -- the job may end before this heat
      redis.call('HSET', key('job', job), 'dead:' .. heat, reason)
    else
      give_up(job, reason)
    end
  else
    add(pair, priority, job, heat, count, outcome == 'released' and deliveries - 1 or deliveries)
  end
end
dispatch(pair)
return outcome
