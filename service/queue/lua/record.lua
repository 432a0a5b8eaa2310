#!lua flags=no-writes
-- A job's fields and its heats' records at one moment; a MULTI would do, but a full server refuses that.
local job = args.job
return {redis.call('HGETALL', key('job', job)), redis.call('HGETALL', key('heats', job))}
