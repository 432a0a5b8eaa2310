#!lua flags=allow-oom
-- Files what a job's finals came to, and ends the job; the first completion wins. `in_play` are the winners by index,
-- whose images stay.
local pair, job, heat = args.pair, args.job, args.heat
release(pair, args.priority, args.entry, 0)
if not wanted(job, heat) then
  dispatch(pair)
  return 'duplicate'
end
redis.call('HSET', key('heats', job), heat, args.record)
redis.call('HSET', key('job', job), 'leaders', args.leaders)
keep_images(job, cjson.decode(args.in_play))
finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
dispatch(pair)
return 'completed'
