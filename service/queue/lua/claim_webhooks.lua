#!lua flags=allow-oom
-- Claims at most `count` webhooks whose time has come, for one attempt each. Until `lease` ms have passed no other process
-- gets them; one that dies loses nothing. Returns job, address, status, time of the end, number of the attempt, body and age.
local found = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('webhooks'), '-inf', now(), 'LIMIT', 0, args.count)) do
  local url, status, ended, body = unpack(redis.call('HMGET', key('webhook', job), 'url', 'status', 'ended', 'body'))
  if url then
    local attempt = redis.call('HINCRBY', key('webhook', job), 'attempts', 1)
    redis.call('ZADD', key('webhooks'), now() + args.lease, job)
    found[#found + 1] = {job, url, status, tonumber(ended), attempt, body or '', now() - ended}
  else
    redis.call('ZREM', key('webhooks'), job)
  end
end
return found
