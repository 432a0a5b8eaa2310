#!lua
-- Accepts a job, or says why not. Without the allow-oom flag: a full server refuses it before it runs.
local job, spec, pair, class = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local num_samples, heat_size, num_steps = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local gflop, image_bytes, ttl = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local idempotency, fingerprint = ARGV[11], ARGV[12]
local max_candidates, max_image_bytes, traceparent = tonumber(ARGV[13]), tonumber(ARGV[14]), ARGV[15]

if idempotency ~= '' then
  local known, other = unpack(redis.call('HMGET', key('idempotency', idempotency), 'job', 'fingerprint'))
  if known then
    return {other == fingerprint and 'replay' or 'mismatch', known}
  end
end
if redis.call('EXISTS', key('job', job)) == 1 then
  return {'created', job} -- the reply to the first call was lost on its way
end
if redis.call('HEXISTS', key('pairs'), pair) == 0 then
  return {'unknown'}
end
local memory = redis.call('INFO', 'memory')
local used, limit = tonumber(memory:match('used_memory:(%d+)')), tonumber(memory:match('maxmemory:(%d+)'))
if limit > 0 and used >= 0.8 * limit then
  return {'memory', used, limit}
end
local waiting = tonumber(redis.call('HGET', key('backlog'), 'candidates') or 0)
if waiting + num_samples > max_candidates then
  return {'candidates', waiting}
end
forget_expired_images()
local held = tonumber(redis.call('HGET', key('reserved'), 'total') or 0)
if held + image_bytes > max_image_bytes then
  local soonest = redis.call('ZRANGE', key('reserved_until'), 0, 0, 'WITHSCORES')[2]
  return {'images', held, soonest and soonest ~= 'inf' and tonumber(soonest) - now() or -1}
end

redis.call('HSET', key('job', job),
  'spec', spec, 'status', 'queued', 'pair', pair, 'class', class, 'created', now(), 'ttl', ttl,
  'num_samples', num_samples, 'heat_size', heat_size, 'heats', math.ceil(num_samples / heat_size),
  'next', 0, 'done', 0, 'waiting', num_samples, 'gflop', gflop,
  'judged', 0, 'steps', 0, 'total_steps', num_samples * num_steps,
  'forwards', 0, 'thumbnail_bytes', 0, 'version', 0, 'leaders', '[]', 'idempotency', idempotency,
  'traceparent', traceparent)
add_load(class, 1, num_samples, gflop)
redis.call('ZADD', key('queued'), now(), job)
redis.call('HSET', key('reserved'), job, image_bytes)
redis.call('HINCRBY', key('reserved'), 'total', image_bytes)
redis.call('ZADD', key('reserved_until'), '+inf', job)
if idempotency ~= '' then
  redis.call('HSET', key('idempotency', idempotency), 'job', job, 'fingerprint', fingerprint)
end
emit(job, 'queued', '{}')
redis.call('RPUSH', key('ring', pair, class), job)
deal(pair)
return {'created', job}
