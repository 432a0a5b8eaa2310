#!lua flags=allow-oom
-- Adds what some heats of one job have come to: `n`, n times (heat, judged, steps), then a JSON text a new candidate.
-- Returns whether the job still wants them.
local job, n = ARGV[1], tonumber(ARGV[2])
if not ACTIVE[status_of(job)] then
  return 0
end
for i = 3, 3 * n + 2, 3 do
  if redis.call('HEXISTS', key('heats', job), ARGV[i]) == 0 then
    advance(job, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
for i = 3 * n + 3, #ARGV do
  emit(job, 'candidate', ARGV[i])
end
emit_progress(job)
return 1
