#!lua flags=allow-oom
-- Files what a job's finals came to, and ends the job; the first completion wins. `standing` are the winners by index,
-- whose pictures stay.
local pair, class, entry, job, heat, record, leaders, standing = unpack(ARGV)
release(pair, class, entry, 0)
if not wanted(job, heat) then
  deal(pair)
  return 'late'
end
redis.call('HSET', key('heats', job), heat, record)
redis.call('HSET', key('job', job), 'leaders', leaders)
keep_images(job, cjson.decode(standing))
finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
deal(pair)
return 'done'
