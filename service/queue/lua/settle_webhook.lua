#!lua flags=allow-oom
-- Ends an attempt at a webhook, unless another one has begun. `pause`: ms until the next attempt, which sends the same `body`;
-- '': there is none. Returns whether the attempt was the last one that had begun.
local webhook = key('webhook', args.job)
if redis.call('HGET', webhook, 'attempts') ~= args.attempt then
  return 0
end
if args.pause == '' then
  redis.call('DEL', webhook)
  redis.call('ZREM', key('webhooks'), args.job)
else
  redis.call('HSET', webhook, 'body', args.body)
  redis.call('ZADD', key('webhooks'), now() + args.pause, args.job)
end
return 1
