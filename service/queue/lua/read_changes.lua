#!lua flags=no-writes
-- At one moment: a job's fields, the number of its heats' records, and those records that are not of the heats in
-- `known`, a JSON array.
local job = args.job
local known, new = {}, {}
for _, heat in ipairs(cjson.decode(args.known)) do
  known[tostring(heat)] = true
end
local heats = redis.call('HKEYS', key('heats', job))
for _, heat in ipairs(heats) do
  if not known[heat] then
    new[#new + 1] = heat
    new[#new + 1] = redis.call('HGET', key('heats', job), heat)
  end
end
return {redis.call('HGETALL', key('job', job)), #heats, new}
