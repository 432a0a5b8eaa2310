#!lua flags=allow-oom
-- Publishes the state of a job's finals, as JSON, if this worker still holds them.
local job, entry = args.job, args.entry
local ready = key('ready', args.pair, args.priority)
if not wanted(job, args.heat) or #redis.call('XPENDING', ready, GROUP, entry, entry, 1, args.worker) == 0 then
  return 0
end
redis.call('HSET', key('job', job), 'finals_state', args.data)
emit(job, 'finals', args.data)
return 1
