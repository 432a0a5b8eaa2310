-- The ends of jobs, and what heats have come to.

-- Ends a job: its last event, its lifetime from now on, its place in the ring, and its share of backlog and budgets. A day after
-- its results, a job that has started is still known to have been. `data` is JSON.
local function finish(job, status, type, data)
  local hash = key('job', job)
  local time = now()
  local waiting, gflop, ttl, idempotency, bytes, pair, priority, created, started, leaders, caller, stopped, dispatched, heats =
    unpack(redis.call('HMGET', hash, 'waiting', 'gflop', 'ttl', 'idempotency', 'thumbnail_bytes',
      'pair', 'priority', 'created', 'started', 'leaders', 'caller', 'stopped', 'next', 'heats'))
  -- Fields that are missing or cannot be read: this job, of another version perhaps, must end all the same.
  ttl, bytes, created, started = integer(ttl) or TOMBSTONE_MS, integer(bytes) or 0, integer(created) or time, integer(started)
  waiting, gflop, pair, priority = integer(waiting) or 0, integer(gflop) or 0, pair or '', priority or PRIORITIES[1]
  redis.call('HSET', hash, 'status', status, 'ended', time, 'waiting', 0)
  add_load(priority, caller, -1, 0 - waiting, 0 - gflop)
  redis.call('ZREM', key('queued'), job)
  redis.call('ZREM', key('deadlines'), job)
  caller = caller or ''
  if (tonumber(dispatched) or 0) < (tonumber(heats) or math.huge) then
    redis.call('LREM', key('jobs', pair, priority, caller), 1, job)
    leave_ring(pair, priority, caller)
  end
  redis.call('XADD', key('ended'), 'MAXLEN', '~', ENDED_KEPT, '*', 'status', status, 'pair', pair, 'priority', priority,
    'waited', math.max(0, (started or time) - created), 'took', math.max(0, time - created), -- the clock may go back
    'leaders', leaders or '[]',
    'stopped', stopped or '')
  emit(job, type, data)
  local webhook = redis.call('HGET', hash, 'webhook')
  if webhook then
    redis.call('HSET', key('webhook', job), 'url', webhook, 'status', status, 'ended', time, 'attempts', 0)
    redis.call('PEXPIRE', key('webhook', job), WEBHOOK_MS)
    redis.call('ZADD', key('webhooks'), time, job)
  end
  local kept = redis.call('HGETALL', key('winner_images', job))
  for i = 1, #kept, 2 do
    local images = key('images', job, kept[i + 1])
    if status == 'succeeded' then
      bytes = bytes + redis.call('HSTRLEN', images, kept[i])
      redis.call('PEXPIRE', images, ttl)
    else
      redis.call('UNLINK', images)
    end
  end
  redis.call('UNLINK', key('sent', job))
  local canceled = status == 'canceled'
  hold(job, caller, canceled and 0 or bytes, canceled and CANCELED_KEPT or nil)
  redis.call('ZADD', key('reserved_until'), time + ttl, job)
  for _, name in ipairs({'job', 'heats', 'progress', 'events', 'winner_images', 'thumbnails'}) do
    redis.call('PEXPIRE', key(name, job), ttl)
  end
  local remembered = started and not canceled and TOMBSTONE_MS or 0
  if remembered > 0 then
    redis.call('SET', key('tombstone', job), status .. ' ' .. caller, 'PX', ttl + remembered)
  end
  if (idempotency or '') ~= '' then
    redis.call('PEXPIRE', key('idempotency', idempotency), ttl + remembered)
  end
  if waiting > 0 or redis.call('HGET', hash, 'finals') == 'due' then
    redis.call('PUBLISH', key('control'), job)
  end
end

-- Dispatches the finals of a job whose other heats are done, or are dropped because it has stopped. They need no device, and
-- no turn in the ring.
local function begin_finals(job)
  local hash = key('job', job)
  local pair, priority, caller, waiting, gflop, heats = unpack(
    redis.call('HMGET', hash, 'pair', 'priority', 'caller', 'waiting', 'gflop', 'heats')
  )
  add_load(priority, caller, 0, 0 - waiting, 0 - gflop)
  redis.call('HSET', hash, 'finals', 'due', 'waiting', 0, 'gflop', 0)
  add(pair, priority, job, heats, 0, 0)
end

-- Drops all of a canceled job but its status and `spec`, its specification without the prompt; '': not readable.
local function forget_canceled(job, spec)
  local hash = key('job', job)
  local names = {'status', 'caller', 'created', 'started', 'ended', 'judged', 'steps', 'total_steps', 'forwards'}
  local values, ttl = redis.call('HMGET', hash, unpack(names)), redis.call('PTTL', hash)
  redis.call('DEL', hash)
  redis.call('HSET', hash, 'spec', spec)
  for i, name in ipairs(names) do
    if values[i] then
      redis.call('HSET', hash, name, values[i])
    end
  end
  redis.call('PEXPIRE', hash, ttl)
  redis.call('UNLINK', key('heats', job), key('progress', job), key('winner_images', job), key('thumbnails', job))
  redis.call('XTRIM', key('events', job), 'MAXLEN', 1)
  redis.call('PEXPIRE', key('events', job), math.min(ttl, CANCELED_EVENTS_MS))
end

-- Drops all images of a job but those of these candidates (an array).
local function keep_images(job, candidates)
  local in_play = {}
  for _, candidate in ipairs(candidates) do
    in_play[tostring(candidate)] = true
  end
  local held = redis.call('HGETALL', key('winner_images', job))
  for i = 1, #held, 2 do
    if not in_play[held[i]] then
      redis.call('HDEL', key('images', job, held[i + 1]), held[i])
      redis.call('HDEL', key('winner_images', job), held[i])
    end
  end
end

-- Fails a job for a reason that its caller reads.
function give_up(job, reason)
  redis.call('HSET', key('job', job), 'error', reason)
  finish(job, 'failed', 'failed', cjson.encode({status = 'failed', error = reason}))
end

-- Ends a job whose candidates are judged; one without an image in play has unsafe candidates alone, and fails.
local function succeed(job)
  if redis.call('HLEN', key('winner_images', job)) == 0 then
    return give_up(job, ALL_UNSAFE)
  end
  finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
end

-- Ends the jobs whose deadline has passed: with the best of the heats that are done, or as failed if none is.
local function expire()
  forget_expired()
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now(), 'LIMIT', 0, 100)) do
    local hash = key('job', job)
    local status, done = unpack(redis.call('HMGET', hash, 'status', 'done'))
    redis.call('HSET', hash, 'stopped', 'deadline')
    if (tonumber(done) or 0) > 0 then
      succeed(job)
    else
      local reason = 'its deadline passed before its first candidates were judged'
      if status == 'queued' then
        reason = 'its deadline passed before it was started'
      end
      give_up(job, reason)
    end
  end
end

-- Notes how far a heat has come and keeps the job's sums; whether that is news. A heat that starts again starts
-- again at nothing.
local function advance(job, heat, judged, steps, forwards)
  local progress, hash = key('progress', job), key('job', job)
  local before = redis.call('HGET', progress, heat) or '0 0 0'
  local old_judged, old_steps, old_forwards = string.match(before, '(%d+) (%d+) (%d+)')
  redis.call('HSET', progress, heat, judged .. ' ' .. steps .. ' ' .. forwards)
  old_judged, old_steps, old_forwards = old_judged or 0, old_steps or 0, old_forwards or 0
  redis.call('HINCRBY', hash, 'judged', judged - old_judged)
  redis.call('HINCRBY', hash, 'steps', steps - old_steps)
  redis.call('HINCRBY', hash, 'forwards', forwards - old_forwards)
  return judged - old_judged ~= 0 or steps - old_steps ~= 0
end

-- Progress is a state, not a step: only the last one stays in the stream, which so keeps its candidates for longer.
local function emit_progress(job)
  local judged, samples, steps, total, forwards, before = unpack(redis.call('HMGET', key('job', job),
    'judged', 'num_samples', 'steps', 'total_steps', 'forwards', 'progress_event'))
  if before then
    redis.pcall('XDEL', key('events', job), before) -- fails where the field cannot be read
  end
  local data = '{"judged":%d,"num_samples":%d,"steps":%d,"total_steps":%d,"transformer_forwards":%d}'
  local entry = emit(job, 'progress', string.format(data, judged, samples, steps, total, forwards))
  redis.call('HSET', key('job', job), 'progress_event', entry)
end

-- Takes back all that has come from heats beyond the first `decided`; images have gone already.
local function forget_beyond(job, decided)
  local hash, before = key('job', job), redis.call('HGET', key('job', job), 'forwards')
  for _, heat in ipairs(redis.call('HKEYS', key('progress', job))) do
    if tonumber(heat) >= decided then
      advance(job, heat, 0, 0, 0)
      redis.call('HDEL', key('heats', job), heat)
    end
  end
  redis.call('HSET', hash, 'discarded', before - redis.call('HGET', hash, 'forwards'))
  local last = heat_schedule(job).first(decided)
  for _, candidate in ipairs(redis.call('HKEYS', key('thumbnails', job))) do
    if tonumber(candidate) >= last then
      redis.call('HINCRBY', hash, 'thumbnail_bytes', 0 - redis.call('HSTRLEN', key('thumbnails', job), candidate))
      redis.call('HDEL', key('thumbnails', job), candidate)
    end
  end
end
