#!lua flags=allow-oom
-- Sets how often a heat that a worker holds counts as delivered; returns whether it still holds it.
local entry, worker = args.entry, args.worker
local ready = key('ready', args.pair, args.priority)
if #redis.call('XPENDING', ready, GROUP, entry, entry, 1, worker) == 0 then
  return 0
end
local before = tonumber(entry_fields(ready, entry).deliveries) or 0 -- of the entries of this heat that came before
redis.call('XCLAIM', ready, GROUP, worker, 0, entry, 'RETRYCOUNT', args.deliveries - before, 'JUSTID')
return 1
