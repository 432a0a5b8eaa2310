-- What the scripts share. All times are the server's, in milliseconds.

-- Arguments by name: ARGV holds the number of names, then (name, value) pairs, then a list without names.
local args, rest = {}, {}
for i = 2, 2 * ARGV[1], 2 do
  args[ARGV[i]] = ARGV[i + 1]
end
for i = 2 * ARGV[1] + 2, #ARGV do
  rest[#rest + 1] = ARGV[i]
end

local ACTIVE = {queued = true, running = true}
local EVENTS_KEPT = 1024
local DEAD_KEPT = 1000
local ENDED_KEPT = 4096
local TOMBSTONE_MS = 24 * 3600 * 1000

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function emit(job, type, data)
  return redis.call('XADD', key('events', job), 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', type, 'data', data)
end

-- Adds to the work that waits or runs: of all jobs, of those of a priority, and of a caller.
local function add_load(priority, caller, jobs, candidates, gflop)
  if caller and caller ~= '' and redis.call('HINCRBY', key('callers'), caller, candidates) <= 0 then
    redis.call('HDEL', key('callers'), caller)
  end
  for _, of in ipairs({'', priority .. ':'}) do
    redis.call('HINCRBY', key('backlog'), of .. 'jobs', jobs)
    redis.call('HINCRBY', key('backlog'), of .. 'candidates', candidates)
    redis.call('HINCRBY', key('backlog'), of .. 'gflop', gflop)
  end
end

-- What a submission is answered where it would take memory that running jobs will need; nothing while there is enough.
local function nearly_full()
  local memory = redis.call('INFO', 'memory')
  local used, limit = tonumber(memory:match('used_memory:(%d+)')), tonumber(memory:match('maxmemory:(%d+)'))
  return limit > 0 and used >= 0.8 * limit and {'memory', used, limit}
end

-- Fields of an entry of a stream, by name; none if the stream has no such entry.
local function entry_fields(stream, entry)
  local found, fields = redis.call('XRANGE', stream, entry, entry)[1], {}
  for i = 1, found and #found[2] or 0, 2 do
    fields[found[2][i]] = found[2][i + 1]
  end
  return fields
end

local function status_of(job)
  return redis.call('HGET', key('job', job), 'status') or ''
end

-- Whether a heat is still to be done: not if its job has ended or it is done already. Once a job waits for its finals,
-- which come after its last heat, nothing else of it is.
local function wanted(job, heat)
  local status, finals, heats = unpack(redis.call('HMGET', key('job', job), 'status', 'finals', 'heats'))
  if not ACTIVE[status] or redis.call('HEXISTS', key('heats', job), heat) == 1 then
    return false
  end
  return finals ~= 'due' or heat == heats
end

-- Puts one heat into the ready stream of its pair and priority. `deliveries` are those that it already had.
local function add(pair, priority, job, heat, count, deliveries)
  redis.call('XADD', key('ready', pair, priority), '*', 'job', job, 'heat', heat, 'count', count, 'deliveries', deliveries)
  redis.call('INCRBY', key('dispatched', pair, priority), count)
end

-- Takes a claimed entry out of the ready stream. Unread entries are never deleted: that would spoil
-- the group's lag, by which autoscalers count.
local function release(pair, priority, entry, count)
  local ready = key('ready', pair, priority)
  redis.call('XACK', ready, GROUP, entry)
  if redis.call('XDEL', ready, entry) == 1 then
    redis.call('DECRBY', key('dispatched', pair, priority), count)
  end
end

local LEAST_AHEAD = 4 -- candidates that may be dispatched beyond the decided prefix, however short it is

-- How a job is cut into heats: `first` is HeatSchedule.first, `may_run` whether a heat may be dispatched when `decided` heats are
-- the prefix: as far ahead of it as it is long. Jobs without `stop` have no prefix, and dispatch all.
local function heat_schedule(job)
  local size, samples, small = unpack(redis.call('HMGET', key('job', job), 'heat_size', 'num_samples', 'first_heats'))
  small = cjson.decode(small)
  local self = {}
  function self.first(heat)
    local sum, left = 0, tonumber(heat)
    for i = 1, math.min(left, #small) do
      sum, left = sum + small[i], left - 1
    end
    return math.min(sum + left * size, tonumber(samples))
  end
  function self.may_run(heat, decided)
    local prefix = decided and self.first(decided)
    return not prefix or tonumber(heat) == tonumber(decided) or self.first(heat + 1) - prefix <= math.max(LEAST_AHEAD, prefix)
  end
  return self
end

local give_up

-- Dispatches heats round-robin from the ring of a pair into its ready stream, interactive jobs first, until the stream
-- holds what the live workers hold, and one unread heat a worker. A job whose fields cannot be read fails.
local function dispatch(pair)
  local workers = redis.call('ZRANGEBYSCORE', key('workers', pair), '(' .. now(), '+inf')
  if #workers == 0 then
    return
  end
  local capacity = 0
  for _, size in ipairs(redis.call('HMGET', key('capacity', pair), unpack(workers))) do
    capacity = capacity + (tonumber(size or 0) or 0)
  end
  local dispatched, unread = 0, 0
  for _, priority in ipairs(PRIORITIES) do
    local ring, ready = key('ring', pair, priority), key('ready', pair, priority)
    dispatched = dispatched + tonumber(redis.call('GET', key('dispatched', pair, priority)) or 0)
    unread = unread + redis.call('XLEN', ready) - redis.call('XPENDING', ready, GROUP)[1]
    while dispatched < capacity or unread < #workers do
      local job = redis.call('LPOP', ring)
      if not job then
        break
      end
      local status, heat, heats, decided, finals = unpack(
        redis.call('HMGET', key('job', job), 'status', 'next', 'heats', 'decided', 'finals')
      )
      if ACTIVE[status] and finals ~= 'due' then
        heat = tonumber(heat)
        local readable, count, more = pcall(function()
          local cut = heat_schedule(job)
          return cut.first(heat + 1) - cut.first(heat), heat + 1 < tonumber(heats) and cut.may_run(heat + 1, decided)
        end)
        if readable then
          add(pair, priority, job, heat, count, 0)
          redis.call('HSET', key('job', job), 'next', heat + 1)
          dispatched, unread = dispatched + count, unread + 1
          if more then
            redis.call('RPUSH', ring, job)
          end -- else the completion that makes its prefix longer puts it back
        else
          give_up(job, "the job's stored fields cannot be read by this version")
        end
      end
    end
  end
end

-- Drops from the byte budget the images of jobs whose results have expired.
local function forget_expired_images()
  local expired = redis.call('ZRANGEBYSCORE', key('reserved_until'), '-inf', now())
  for _, job in ipairs(expired) do
    redis.call('HINCRBY', key('reserved'), 'total', 0 - (redis.call('HGET', key('reserved'), job) or 0))
    redis.call('HDEL', key('reserved'), job)
    redis.call('ZREM', key('reserved_until'), job)
  end
end

-- Ends a job: its last event, its lifetime from now on, its place in the ring, and its share of backlog and byte budget.
-- `data` is JSON.
local function finish(job, status, type, data)
  local hash = key('job', job)
  local time = now()
  local waiting, gflop, ttl, idempotency, bytes, pair, priority, created, started, leaders, caller, stopped, dispatched, heats =
    unpack(redis.call('HMGET', hash, 'waiting', 'gflop', 'ttl', 'idempotency', 'thumbnail_bytes',
      'pair', 'priority', 'created', 'started', 'leaders', 'caller', 'stopped', 'next', 'heats'))
  -- Fields that are missing or cannot be read: this job, of another version perhaps, must end all the same.
  ttl, bytes, created = tonumber(ttl) or TOMBSTONE_MS, tonumber(bytes) or 0, tonumber(created) or time
  waiting, gflop, pair, priority = tonumber(waiting) or 0, tonumber(gflop) or 0, pair or '', priority or PRIORITIES[1]
  redis.call('HSET', hash, 'status', status, 'ended', time, 'waiting', 0)
  add_load(priority, caller, -1, 0 - waiting, 0 - gflop)
  redis.call('ZREM', key('queued'), job)
  redis.call('ZREM', key('deadlines'), job)
  if (tonumber(dispatched) or 0) < (tonumber(heats) or math.huge) then
    redis.call('LREM', key('ring', pair, priority), 1, job)
  end
  redis.call('XADD', key('ended'), 'MAXLEN', '~', ENDED_KEPT, '*', 'status', status, 'pair', pair, 'priority', priority,
    'waited', (started or time) - created, 'took', time - created, 'leaders', leaders or '[]',
    'stopped', stopped or '')
  emit(job, type, data)
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
  redis.call('HINCRBY', key('reserved'), 'total', bytes - (redis.call('HGET', key('reserved'), job) or 0))
  redis.call('HSET', key('reserved'), job, bytes)
  redis.call('ZADD', key('reserved_until'), time + ttl, job)
  for _, name in ipairs({'job', 'heats', 'progress', 'events', 'winner_images', 'thumbnails'}) do
    redis.call('PEXPIRE', key(name, job), ttl)
  end
  redis.call('SET', key('tombstone', job), status .. ' ' .. (caller or ''), 'PX', ttl + TOMBSTONE_MS)
  if (idempotency or '') ~= '' then
    redis.call('PEXPIRE', key('idempotency', idempotency), ttl + TOMBSTONE_MS)
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

-- Ends the jobs whose deadline has passed: with the best of the heats that are done, or as failed if none is.
local function expire()
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now(), 'LIMIT', 0, 100)) do
    local hash = key('job', job)
    local status, done = unpack(redis.call('HMGET', hash, 'status', 'done'))
    redis.call('HSET', hash, 'stopped', 'deadline')
    if (tonumber(done) or 0) > 0 then
      finish(job, 'succeeded', 'result', '{"status":"succeeded"}')
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
    redis.call('XDEL', key('events', job), before)
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
