#!lua flags=allow-oom
-- Adds what some heats of one job have come to: `heats` times (heat, judged, steps, forwards), then for each new
-- candidate its index, a JSON text and its thumbnail ('': none). Returns whether the job still wants any.
local job, heats = args.job, 4 * args.heats
if not ACTIVE[status_of(job)] or redis.call('HGET', key('job', job), 'finals') == 'due' then
  return 0
end
if not countable(job) then
  give_up(job, UNREADABLE)
  return 0
end
for i = 1, heats, 4 do
  if redis.call('HEXISTS', key('heats', job), rest[i]) == 0 then
    advance(job, unpack(rest, i, i + 3))
  end
end
for i = heats + 1, #rest, 3 do
  local candidate, data, thumbnail = unpack(rest, i, i + 2)
  if thumbnail ~= '' and redis.call('HSETNX', key('thumbnails', job), candidate, thumbnail) == 1 then
    redis.call('HINCRBY', key('job', job), 'thumbnail_bytes', #thumbnail)
  end
  emit(job, 'candidate', data)
end
emit_progress(job)
return 1
