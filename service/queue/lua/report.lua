#!lua flags=allow-oom
-- Adds what some heats of one job have come to: `n`, n times (heat, judged, steps, forwards), then for each new
-- candidate its index, a JSON text and its thumbnail ('': none). Returns whether the job still wants any.
local job, n = ARGV[1], tonumber(ARGV[2])
if not ACTIVE[status_of(job)] or redis.call('HGET', key('job', job), 'finals') == 'due' then
  return 0
end
for i = 3, 4 * n + 2, 4 do
  if redis.call('HEXISTS', key('heats', job), ARGV[i]) == 0 then
    advance(job, unpack(ARGV, i, i + 3))
  end
end
for i = 4 * n + 3, #ARGV, 3 do
  local candidate, data, thumbnail = unpack(ARGV, i, i + 2)
  if thumbnail ~= '' and redis.call('HSETNX', key('thumbnails', job), candidate, thumbnail) == 1 then
    redis.call('HINCRBY', key('job', job), 'thumbnail_bytes', #thumbnail)
  end
  emit(job, 'candidate', data)
end
emit_progress(job)
return 1
