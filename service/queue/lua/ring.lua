-- Turns: how a job is cut into heats, and whose heat is dispatched next.

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

local COUNTED = {'heats', 'next', 'done', 'waiting', 'gflop', 'version', 'num_samples', 'heat_size', 'total_steps', 'judged',
  'steps', 'forwards', 'thumbnail_bytes'}

-- Whether the fields that scripts count with can be read.
local function countable(job)
  for _, text in ipairs(redis.call('HMGET', key('job', job), unpack(COUNTED))) do
    if not integer(text) then
      return false
    end
  end
  local decided = redis.call('HGET', key('job', job), 'decided')
  local cut = pcall(function() return heat_schedule(job).first(1) end)
  return cut and (not decided or integer(decided))
end

-- The ring of a pair and priority: callers with heats to dispatch, each at the start of its next turn on the ring's clock, which
-- counts candidates. A caller that comes starts now, or where its last turn ended. Its jobs take its turns round-robin.
local function enter_ring(pair, priority, caller, job)
  if redis.call('RPUSH', key('jobs', pair, priority, caller), job) == 1 then
    local time, ended = unpack(redis.call('HMGET', key('clock', pair, priority), 'now', 'of:' .. caller))
    redis.call('ZADD', key('ring', pair, priority), math.max(tonumber(time) or 0, tonumber(ended) or 0), caller)
  end
end

-- Takes a caller without jobs out of the ring; an empty ring forgets its clock.
local function leave_ring(pair, priority, caller)
  if redis.call('EXISTS', key('jobs', pair, priority, caller)) == 0 then
    redis.call('ZREM', key('ring', pair, priority), caller)
    if redis.call('EXISTS', key('ring', pair, priority)) == 0 then
      redis.call('DEL', key('clock', pair, priority))
    end
  end
end

local give_up

-- Dispatches the next heat of a job that has a turn: its candidates, and whether the job has another turn. A job whose fields
-- cannot be read fails.
local function dispatch_heat(pair, priority, job)
  local status, heat, heats, decided, finals = unpack(
    redis.call('HMGET', key('job', job), 'status', 'next', 'heats', 'decided', 'finals')
  )
  if not ACTIVE[status] or finals == 'due' then
    return
  end
  heat = tonumber(heat)
  local readable, count, more = pcall(function()
    local cut = heat_schedule(job)
    return cut.first(heat + 1) - cut.first(heat), heat + 1 < tonumber(heats) and cut.may_run(heat + 1, decided)
  end)
  if not readable then
    give_up(job, UNREADABLE)
    return
  end
  add(pair, priority, job, heat, count, 0)
  redis.call('HSET', key('job', job), 'next', heat + 1)
  return count, more -- without more, the completion that makes its prefix longer puts it back
end

-- Dispatches heats from the ring of a pair into its ready stream, interactive jobs first, until the stream holds what the live
-- workers hold, and one unread heat a worker.
local function dispatch(pair)
  local workers = live_workers(pair)
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
      local caller, start = unpack(redis.call('ZRANGE', ring, 0, 0, 'WITHSCORES'))
      if not caller then
        break
      end
      local jobs = key('jobs', pair, priority, caller)
      local job, count, more = redis.call('LPOP', jobs), nil, nil
      if job then
        count, more = dispatch_heat(pair, priority, job)
      end
      if more then
        redis.call('RPUSH', jobs, job)
      end
      if count then
        dispatched, unread = dispatched + count, unread + 1
        redis.call('ZADD', ring, start + count, caller)
        redis.call('HSET', key('clock', pair, priority), 'now', start, 'of:' .. caller, start + count)
      end
      leave_ring(pair, priority, caller)
    end
  end
end
