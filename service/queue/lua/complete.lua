#!lua flags=allow-oom
-- Records a completed heat; the first completion wins. The caller has decided what it means for the job, from what it
-- has read: the images in play, the decided prefix of a job that may stop, whether the job stops with it (`stopped`),
-- and whether finals follow. If the job has changed since, the reply is "conflict" and nothing is done.
local pair, priority, entry, count, job, heat = args.pair, args.priority, args.entry, args.count, args.job, args.heat
local staged, decided, stopped = args.staged, args.decided, args.stopped
local kept, in_play = cjson.decode(args.kept), cjson.decode(args.in_play) -- candidates: of this heat, and of all
local hash = key('job', job)
local version_now, heats, waiting, gflop, caller, before, next_heat = unpack(
  redis.call('HMGET', hash, 'version', 'heats', 'waiting', 'gflop', 'caller', 'decided', 'next')
)

local open = wanted(job, heat)
if not open or not countable(job) then
  release(pair, priority, entry, count)
  redis.call('UNLINK', staged)
  if open then
    give_up(job, UNREADABLE)
  end
  dispatch(pair)
  return 'duplicate'
end
if version_now ~= args.version then
  return 'conflict'
end
for i = 1, #rest, 2 do -- images that a full server would not take by themselves
  redis.call('HSET', staged, rest[i], rest[i + 1])
end
if #kept > 0 and redis.call('HLEN', staged) < #kept then
  return 'unstaged'
end

release(pair, priority, entry, count)
redis.call('HSET', key('heats', job), heat, args.record)
if #kept > 0 then
  redis.call('RENAME', staged, key('images', job, heat))
  redis.call('PERSIST', key('images', job, heat))
else
  redis.call('UNLINK', staged) -- of an earlier try, when this heat's images were still in play
end
for _, candidate in ipairs(kept) do
  redis.call('HSET', key('winner_images', job), candidate, heat)
end
keep_images(job, in_play)
redis.call('HSET', hash, 'leaders', args.leaders)
redis.call('HINCRBY', hash, 'version', 1)
local share = math.floor(gflop * count / waiting)
redis.call('HINCRBY', hash, 'waiting', 0 - count)
redis.call('HINCRBY', hash, 'gflop', 0 - share) -- and not -0, which is no integer
add_load(priority, caller, 0, 0 - count, 0 - share)
local news = advance(job, heat, count, args.steps, args.forwards)
local beyond = before and redis.call('HGET', hash, 'dead:' .. decided)
if before then
  redis.call('HSET', hash, 'decided', decided)
  local cut = heat_schedule(job)
  if tonumber(next_heat) < tonumber(heats) and not cut.may_run(next_heat, before) and cut.may_run(next_heat, decided) then
    enter_ring(pair, priority, caller, job)
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
  if args.finals == '1' then
    begin_finals(job)
  else
    succeed(job)
  end
elseif beyond then
  give_up(job, beyond)
end
dispatch(pair)
return 'completed'
