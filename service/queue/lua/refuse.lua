#!lua flags=allow-oom
-- Notes that a worker cannot read a heat that it holds. Returns whether a live worker has not refused it.
local job, heat = args.job, args.heat
if not wanted(job, heat) then
  return 0
end
redis.call('HSET', key('job', job), refused_by(heat, args.worker), 1)
return untried(args.pair, job, heat) and 1 or 0
