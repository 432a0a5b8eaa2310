#!lua
-- Accepts a job, or says why not. Without the allow-oom flag: a full server refuses it before it runs.
local job, pair, priority, caller = args.job, args.pair, args.priority, args.caller -- caller '': not known
local num_samples, gflop = tonumber(args.num_samples), tonumber(args.gflop)
local image_bytes, idempotency = tonumber(args.image_bytes), args.idempotency
local max_own, max_gflop = tonumber(args.max_candidates_per_caller), tonumber(args.max_gflop) -- 0: no limit
local deadline = tonumber(args.deadline) -- ms from now; 0: none

if idempotency ~= '' then
  local known, other = unpack(redis.call('HMGET', key('idempotency', idempotency), 'job', 'fingerprint'))
  if known then
    return {other == args.fingerprint and 'replay' or 'mismatch', known}
  end
end
if redis.call('EXISTS', key('job', job)) == 1 then
  return {'created', job} -- the reply to the first call was lost on its way
end
if redis.call('HEXISTS', key('pairs'), pair) == 0 then
  return {'unknown'}
end
local full = nearly_full()
if full then
  return full
end
-- Each refusal for lack of room returns the amount that waits, and the work (GFLOP) to do before there is room.
local waiting, work = unpack(redis.call('HMGET', key('backlog'), 'candidates', 'gflop'))
waiting, work = tonumber(waiting or 0), tonumber(work or 0)
local function over(reason, held, excess)
  return {reason, held, math.floor(excess * work / math.max(waiting, 1))}
end
if waiting + num_samples > tonumber(args.max_candidates) then
  return over('candidates', waiting, waiting + num_samples - args.max_candidates)
end
if max_gflop > 0 and work + gflop > max_gflop then
  return {'work', work, work + gflop - max_gflop}
end
local own = tonumber(redis.call('HGET', key('callers'), caller) or 0)
if max_own > 0 and caller ~= '' and own + num_samples > max_own then
  return over('caller', own, own + num_samples - max_own)
end
forget_expired_images()
local held = tonumber(redis.call('HGET', key('reserved'), 'total') or 0)
if held + image_bytes > tonumber(args.max_image_bytes) then
  local soonest = redis.call('ZRANGE', key('reserved_until'), 0, 0, 'WITHSCORES')[2]
  return {'images', held, soonest and soonest ~= 'inf' and tonumber(soonest) - now() or -1}
end

redis.call('HSET', key('job', job),
  'spec', args.spec, 'status', 'queued', 'pair', pair, 'priority', priority, 'created', now(), 'ttl', args.ttl,
  'num_samples', num_samples, 'heat_size', args.heat_size, 'first_heats', args.first_heats, 'heats', args.heats,
  'next', 0, 'done', 0, 'waiting', num_samples, 'gflop', gflop,
  'judged', 0, 'steps', 0, 'total_steps', args.total_steps,
  'forwards', 0, 'thumbnail_bytes', 0, 'version', 0, 'leaders', '[]', 'idempotency', idempotency,
  'traceparent', args.traceparent, 'caller', caller)
if args.may_stop == '1' then
  redis.call('HSET', key('job', job), 'decided', 0)
end
add_load(priority, caller, 1, num_samples, gflop)
redis.call('ZADD', key('queued'), now(), job)
if deadline > 0 then
  redis.call('HSET', key('job', job), 'deadline', now() + deadline)
  redis.call('ZADD', key('deadlines'), now() + deadline, job)
end
redis.call('HSET', key('reserved'), job, image_bytes)
redis.call('HINCRBY', key('reserved'), 'total', image_bytes)
redis.call('ZADD', key('reserved_until'), '+inf', job)
if idempotency ~= '' then
  redis.call('HSET', key('idempotency', idempotency), 'job', job, 'fingerprint', args.fingerprint)
end
emit(job, 'queued', '{}')
redis.call('RPUSH', key('ring', pair, priority), job)
dispatch(pair)
return {'created', job}
