#!lua
-- Accepts a job, or says why not. Without the allow-oom flag: a full server refuses it before it runs. A job whose images
-- were sent is first answered "stage": its images are then stored under `staged`, and the script is called again.
local job, pair, priority, caller = args.job, args.pair, args.priority, args.caller -- caller '': not known
local num_samples, gflop = tonumber(args.num_samples), tonumber(args.gflop)
local image_bytes, idempotency = tonumber(args.image_bytes), args.idempotency
local job_bytes = tonumber(args.job_bytes) -- all but images
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
local full, memory = nearly_full()
if full then
  return full
end
local webhooks = args.webhook ~= '' and redis.call('ZCARD', key('webhooks')) or 0
if webhooks >= WEBHOOKS_KEPT then
  return {'webhooks', webhooks}
end
-- Each refusal for lack of room returns the amount that waits, and the work (GFLOP) to do before there is room.
local waiting, work = unpack(redis.call('HMGET', key('backlog'), 'candidates', 'gflop'))
waiting, work = tonumber(waiting or 0), tonumber(work or 0)
local function over(reason, held, excess, ...)
  return {reason, held, math.floor(excess * work / math.max(waiting, 1)), ...}
end
if waiting + num_samples > tonumber(args.max_candidates) then
  return over('candidates', waiting, waiting + num_samples - args.max_candidates)
end
if max_gflop > 0 and work + gflop > max_gflop then
  return {'work', work, work + gflop - max_gflop}
end
-- What a caller may have of a limit: a share of what the others leave of it, and so never all.
local function own_limit(own, all, limit)
  return math.max(0, math.floor(args.own_share * (limit - all + own)))
end
if caller ~= '' then
  local own = tonumber(redis.call('HGET', key('callers'), caller) or 0)
  local most = own_limit(own, waiting, args.max_candidates)
  most = max_own > 0 and math.min(most, max_own) or most
  if own + num_samples > most then
    return over('caller', own, own + num_samples - most, most)
  end
  local own_work = tonumber(redis.call('HGET', key('held'), 'gflop:' .. caller) or 0)
  local max_work = max_gflop > 0 and own_limit(own_work, work, max_gflop) or math.huge
  if own_work + gflop > max_work then
    return {'own_work', own_work, own_work + gflop - max_work, max_work}
  end
end
forget_expired()
local held, kept, own_images, own_kept = tonumber(redis.call('HGET', key('reserved'), 'total') or 0),
  unpack(redis.call('HMGET', key('held'), 'kept', 'images:' .. caller, 'kept:' .. caller))
local function no_room(reason, ...)
  local soonest = redis.call('ZRANGE', key('reserved_until'), 0, 0, 'WITHSCORES')[2]
  return {reason, soonest and soonest ~= 'inf' and tonumber(soonest) - now() or -1, ...}
end
if held + image_bytes > tonumber(args.max_image_bytes) then
  return no_room('images', held)
end
if caller ~= '' then
  own_images, own_kept = tonumber(own_images or 0), tonumber(own_kept or 0)
  local max_images = own_limit(own_images, held, args.max_image_bytes)
  if image_bytes > 0 and own_images + image_bytes > max_images then
    return no_room('own_images', own_images, image_bytes, max_images)
  end
  local max_kept = own_limit(own_kept, tonumber(kept or 0), math.floor(args.kept_share * memory))
  if own_kept + job_bytes > max_kept then
    return no_room('own_kept', own_kept, job_bytes, max_kept)
  end
end

if args.staged ~= '' then
  if redis.call('EXISTS', args.staged) == 0 then
    return {'stage'}
  end
  redis.call('RENAME', args.staged, key('sent', job))
  redis.call('PERSIST', key('sent', job))
end
redis.call('HSET', key('job', job),
  'spec', args.spec, 'status', 'queued', 'pair', pair, 'priority', priority, 'created', now(), 'ttl', args.ttl,
  'num_samples', num_samples, 'heat_size', args.heat_size, 'first_heats', args.first_heats, 'heats', args.heats,
  'next', 0, 'done', 0, 'waiting', num_samples, 'gflop', gflop,
  'judged', 0, 'steps', 0, 'total_steps', args.total_steps,
  'forwards', 0, 'thumbnail_bytes', 0, 'version', 0, 'leaders', '[]', 'idempotency', idempotency,
  'traceparent', args.traceparent, 'caller', caller)
if args.webhook ~= '' then
  redis.call('HSET', key('job', job), 'webhook', args.webhook)
end
if args.may_stop == '1' then
  redis.call('HSET', key('job', job), 'decided', 0)
end
add_load(priority, caller, 1, num_samples, gflop)
redis.call('ZADD', key('queued'), now(), job)
if deadline > 0 then
  redis.call('HSET', key('job', job), 'deadline', now() + deadline)
  redis.call('ZADD', key('deadlines'), now() + deadline, job)
end
hold(job, caller, image_bytes, job_bytes)
redis.call('ZADD', key('reserved_until'), '+inf', job)
if idempotency ~= '' then
  redis.call('HSET', key('idempotency', idempotency), 'job', job, 'fingerprint', args.fingerprint)
end
emit(job, 'queued', '{}')
enter_ring(pair, priority, caller, job)
dispatch(pair)
return {'created', job}
