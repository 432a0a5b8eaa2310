#!lua flags=allow-oom
-- Cancels a job that has not ended; its heats in the ready stream are dropped when they are claimed. `spec` is what stays of
-- its specification. Returns the job's status from now on, or nothing if there is no such job.
local job = args.job
local status, pair = unpack(redis.call('HMGET', key('job', job), 'status', 'pair'))
if not status then
  return false
end
if not ACTIVE[status] then
  return status
end
finish(job, 'canceled', 'canceled', '{"status":"canceled"}')
forget_canceled(job, args.spec)
dispatch(pair)
return 'canceled'
