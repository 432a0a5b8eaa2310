#!lua flags=allow-oom
-- Files a finished heat; the first completion wins. What it means for the job is decided by the caller from what it has
-- read: which images stand, and of a job that may stop, how many heats are its decided prefix and whether (`stopped`) it
-- ends with them. If the job has changed since, the caller is told so ("again") and nothing is done.
local pair, class, entry, count, job, heat = unpack(ARGV, 1, 6)
local record, version, leaders, staged = unpack(ARGV, 7, 10)
local kept, standing = cjson.decode(ARGV[11]), {} -- candidates: of this heat, and of all
local steps, forwards, decided, stopped = unpack(ARGV, 13, 16)
local hash = key('job', job)
local status, version_now, heats, waiting, gflop, caller, before, next_heat = unpack(
  redis.call('HMGET', hash, 'status', 'version', 'heats', 'waiting', 'gflop', 'caller', 'decided', 'next')
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
for i = 17, #ARGV, 2 do -- images that a full server would not take by themselves
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
for _, candidate in ipairs(cjson.decode(ARGV[12])) do
  standing[tostring(candidate)] = true
end
local held = redis.call('HGETALL', key('kept', job))
for i = 1, #held, 2 do
  if not standing[held[i]] then
    redis.call('HDEL', key('images', job, held[i + 1]), held[i])
    redis.call('HDEL', key('kept', job), held[i])
  end
end
redis.call('HSET', hash, 'leaders', leaders)
redis.call('HINCRBY', hash, 'version', 1)
local share = math.floor(gflop * count / waiting)
redis.call('HINCRBY', hash, 'waiting', -count)
redis.call('HINCRBY', hash, 'gflop', -share)
add_load(class, caller, 0, -count, -share)
local news = advance(job, heat, count, steps, forwards)
local beyond = before and redis.call('HGET', hash, 'dead:' .. decided)
if before then
  redis.call('HSET', hash, 'decided', decided)
  local cut = schedule(job)
  if tonumber(next_heat) < tonumber(heats) and not cut.may_run(next_heat, before) and cut.may_run(next_heat, decided) then
    redis.call('RPUSH', key('ring', pair, class), job)
  end
end
if stopped ~= '' then
  redis.call('HSET', hash, 'stopped', stopped)
  forget_beyond(job, tonumber(decided))
end
if news then
  emit_progress(job)
end
local prefix = before and ',"decided":' .. decided or ''
emit(job, 'heat', string.format('{"heat":%d,"num_heats":%d%s}', heat, heats, prefix))
if redis.call('HINCRBY', hash, 'done', 1) == tonumber(heats) or stopped ~= '' then
  finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
elseif beyond then
  give_up(job, beyond)
end
deal(pair)
return 'done'
