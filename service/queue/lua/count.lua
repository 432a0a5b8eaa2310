#!lua flags=allow-oom
-- Sets how often a heat that a worker holds counts as delivered; returns whether it still holds it.
local pair, priority, entry, worker, deliveries = unpack(ARGV)
local ready = key('ready', pair, priority)
if #redis.call('XPENDING', ready, GROUP, entry, entry, 1, worker) == 0 then
  return 0
end
local before = redis.call('XRANGE', ready, entry, entry)[1][2][8] -- of the entries of this heat that came before
redis.call('XCLAIM', ready, GROUP, worker, 0, entry, 'RETRYCOUNT', deliveries - before, 'JUSTID')
return 1
