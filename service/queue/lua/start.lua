#!lua flags=allow-oom
-- Called with the heats that a worker has just claimed: marks their jobs as running, drops heats that are not
-- wanted any more, and dispatches the next ones in their place. A heat that the worker has refused as not readable stays for
-- one that has not, until its lease lapses. Returns (deliveries, specification, traceparent, ms since
-- the job's submission) of each; 0 deliveries: not for this worker.
local pair, worker = args.pair, args.worker
local claims = {}
expire()
for i = 1, #rest, 5 do
  local priority, entry, job, heat, count = unpack(rest, i, i + 4)
  local hash = key('job', job)
  local status, spec, traceparent, created = unpack(
    redis.call('HMGET', hash, 'status', 'spec', 'traceparent', 'created')
  )
  if not wanted(job, heat) then
    release(pair, priority, entry, count)
    claims[#claims + 1] = {0, '', '', 0}
  else
    if status == 'queued' then
      redis.call('HSET', hash, 'status', 'running', 'started', now())
      redis.call('ZREM', key('queued'), job)
      emit(job, 'started', '{}')
    end
    local ready = key('ready', pair, priority)
    local pending = redis.call('XPENDING', ready, GROUP, entry, entry, 1)[1]
    local times = pending and pending[4] or 1
    local deliveries = times + (tonumber(entry_fields(ready, entry).deliveries) or 0)
    if redis.call('HEXISTS', hash, refused_by(heat, worker)) == 1 and untried(pair, job, heat) then
      redis.call('XCLAIM', ready, GROUP, worker, 0, entry, 'RETRYCOUNT', times - 1, 'JUSTID')
      deliveries = 0
    end
    claims[#claims + 1] = {deliveries, spec, traceparent, math.max(0, now() - (tonumber(created) or now()))}
  end
end
dispatch(pair)
return claims
