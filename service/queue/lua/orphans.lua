#!lua flags=allow-oom
-- Fails the jobs of other schema versions whose workers are gone for `patience` ms, and returns their ids. A restart of
-- such a worker within that time goes on with them. `pair:` entries that no worker has announced are not judged.
local time, gone, failed = now(), {}, {}
local announced = redis.call('HGETALL', key('pairs'))
for i = 1, #announced, 2 do
  local pair = announced[i]
  local readable, info = pcall(cjson.decode, announced[i + 1])
  local version = readable and type(info) == 'table' and info.schema_version or 0
  if version == tonumber(args.schema_version) or #live_workers(pair) > 0 then
    redis.call('HDEL', key('abandoned'), pair)
  else
    redis.call('HSETNX', key('abandoned'), pair, time)
    gone[pair] = time - redis.call('HGET', key('abandoned'), pair) >= tonumber(args.patience) and version
  end
end
for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('reserved_until'), '+inf', '+inf')) do -- jobs that have not ended
  local version = gone[redis.call('HGET', key('job', job), 'pair') or '']
  if version then
    give_up(job, 'the job was accepted by another version of bestofn (stored form ' .. version .. ', here ' ..
      args.schema_version .. ') and the workers of that version are gone: submit it again')
    failed[#failed + 1] = job
  end
end
return failed
