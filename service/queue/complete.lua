#!lua flags=allow-oom
-- Files a finished heat; the first completion wins. The job's best images so far are chosen by the caller from the
-- leaders that it has read: if they have changed since, it is told so ("again") and nothing is done.
local pair, class, entry, count, job, heat = unpack(ARGV, 1, 6)
local record, version, leaders, staged = unpack(ARGV, 7, 10)
local kept, dropped = cjson.decode(ARGV[11]), cjson.decode(ARGV[12]) -- candidates; {candidate, heat}
local steps, forwards = ARGV[13], ARGV[14]
local hash = key('job', job)
local status, version_now, heats, waiting, gflop, caller = unpack(
  redis.call('HMGET', hash, 'status', 'version', 'heats', 'waiting', 'gflop', 'caller')
)

if not ACTIVE[status] or redis.call('HEXISTS', key('heats', job), heat) == 1 then
  release(pair, class, entry, count)
  redis.call('UNLINK', staged)
  deal(pair)
  return 'late'
end
if version_now ~= version then
  return 'again'
end
for i = 15, #ARGV, 2 do -- images that a full server would not take by themselves
  redis.call('HSET', staged, ARGV[i], ARGV[i + 1])
end
if #kept > 0 and redis.call('HLEN', staged) < #kept then
  return 'unstaged'
end

release(pair, class, entry, count)
redis.call('HSET', key('heats', job), heat, record)
if redis.call('EXISTS', staged) == 1 then
  redis.call('RENAME', staged, key('images', job, heat))
  redis.call('PERSIST', key('images', job, heat))
end
for _, candidate in ipairs(kept) do
  redis.call('HSET', key('kept', job), candidate, heat)
end
for _, out in ipairs(dropped) do
  redis.call('HDEL', key('images', job, out[2]), out[1])
  redis.call('HDEL', key('kept', job), out[1])
end
redis.call('HSET', hash, 'leaders', leaders)
redis.call('HINCRBY', hash, 'version', 1)
local share = math.floor(gflop * count / waiting)
redis.call('HINCRBY', hash, 'waiting', -count)
redis.call('HINCRBY', hash, 'gflop', -share)
add_load(class, caller, 0, -count, -share)
if advance(job, heat, count, steps, forwards) then
  emit_progress(job)
end
emit(job, 'heat', string.format('{"heat":%d,"num_heats":%d}', heat, heats))
if redis.call('HINCRBY', hash, 'done', 1) == tonumber(heats) then
  finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
end
deal(pair)
return 'done'
