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
local MOST_AHEAD_MS = 600 * 1000 -- an announcement reaches less far into the future, unless heartbeats are slow
local CANCELED_EVENTS_MS = 10 * 1000 -- the last event of a canceled job, for those who follow it now
local CANCELED_KEPT = 4096 -- bytes of a canceled job, until it expires
local WEBHOOK_MS = 48 * 3600 * 1000 -- attempts end after half of this
local WEBHOOKS_KEPT = 10000 -- to be sent; jobs with another one are refused
local EXPIRED_AT_ONCE = 1000
local UNREADABLE = "the job's stored fields cannot be read by this version"
local ALL_UNSAFE = 'the image checker refused every candidate as unsafe: change the prompt, or try another seed'

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function emit(job, type, data)
  return redis.call('XADD', key('events', job), 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', type, 'data', data)
end

-- Adds to the work that waits or runs: of all jobs, of those of a priority, and of a caller.
local function add_load(priority, caller, jobs, candidates, gflop)
  if caller and caller ~= '' then
    for _, of in ipairs({{key('callers'), caller, candidates}, {key('held'), 'gflop:' .. caller, gflop}}) do
      if redis.call('HINCRBY', unpack(of)) <= 0 then
        redis.call('HDEL', of[1], of[2])
      end
    end
  end
  for _, of in ipairs({'', priority .. ':'}) do
    redis.call('HINCRBY', key('backlog'), of .. 'jobs', jobs)
    redis.call('HINCRBY', key('backlog'), of .. 'candidates', candidates)
    redis.call('HINCRBY', key('backlog'), of .. 'gflop', gflop)
  end
end

-- What a submission is answered where it would take memory that running jobs will need; nothing while there is enough.
-- Also the memory that the server may use: its limit, or the machine's memory.
local function nearly_full()
  local memory = redis.call('INFO', 'memory')
  local used, limit = tonumber(memory:match('used_memory:(%d+)')), tonumber(memory:match('maxmemory:(%d+)'))
  local whole = limit > 0 and limit or tonumber(memory:match('total_system_memory:(%d+)'))
  return limit > 0 and used >= 0.8 * limit and {'memory', used, limit}, whole
end

-- Sets what a job holds of the budgets, in bytes: images, and all else that is kept of it (`kept`; nil: as before).
local function hold(job, caller, images, kept)
  local before = redis.call('HGET', key('holdings'), job) or ('0 0 ' .. caller)
  local old_images, old_kept, owner = before:match('^(%d+) (%d+) (.*)$')
  kept = kept or tonumber(old_kept)
  redis.call('HINCRBY', key('reserved'), 'total', images - (redis.call('HGET', key('reserved'), job) or 0))
  redis.call('HINCRBY', key('held'), 'kept', kept - old_kept)
  if owner ~= '' then
    for name, bytes in pairs({['images:' .. owner] = images - old_images, ['kept:' .. owner] = kept - old_kept}) do
      if redis.call('HINCRBY', key('held'), name, bytes) <= 0 then
        redis.call('HDEL', key('held'), name)
      end
    end
  end
  redis.call('HSET', key('reserved'), job, images)
  redis.call('HSET', key('holdings'), job, string.format('%d %d %s', images, kept, owner))
end

-- Gives the budgets back what jobs held whose results have expired: those of a thousand at a time.
local function forget_expired()
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('reserved_until'), '-inf', now(), 'LIMIT', 0, EXPIRED_AT_ONCE)) do
    hold(job, '', 0, 0)
    redis.call('HDEL', key('reserved'), job)
    redis.call('HDEL', key('holdings'), job)
    redis.call('ZREM', key('reserved_until'), job)
  end
end

-- Fields of an entry of a stream, by name; none if the stream has no such entry.
local function entry_fields(stream, entry)
  local found, fields = redis.call('XRANGE', stream, entry, entry)[1], {}
  for i = 1, found and #found[2] or 0, 2 do
    fields[found[2][i]] = found[2][i + 1]
  end
  return fields
end

-- A stored whole number that counters can hold; false or nil where it is none.
local function integer(text)
  return text and #text < 16 and text:match('^-?%d+$') and tonumber(text)
end

local function live_workers(pair)
  return redis.call('ZRANGEBYSCORE', key('workers', pair), '(' .. now(), '+inf')
end

local function refused_by(heat, worker)
  return 'refused:' .. heat .. ':' .. worker
end

-- Whether a live worker of a pair has not refused a heat as not readable: it may run another version.
local function untried(pair, job, heat)
  for _, worker in ipairs(live_workers(pair)) do
    if redis.call('HEXISTS', key('job', job), refused_by(heat, worker)) == 0 then
      return true
    end
  end
  return false
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
