#!lua flags=allow-oom
-- Notes how far a job's finals have come, as JSON, if this worker still holds them: another one that plays them anew is
-- the one to tell.
local pair, priority, entry, job, heat, worker, data = unpack(ARGV)
if not wanted(job, heat) or #redis.call('XPENDING', key('ready', pair, priority), GROUP, entry, entry, 1, worker) == 0 then
  return 0
end
redis.call('HSET', key('job', job), 'finals_state', data)
emit(job, 'finals', data)
return 1
