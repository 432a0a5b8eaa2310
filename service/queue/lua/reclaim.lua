#!lua flags=allow-oom
-- Claims a heat whose lease of `lease` ms has run out, among `count` entries from `after` on. A reply without one says
-- where the next search begins. Heartbeats that paused for more than `pause` ms show a server that was away, or whose
-- clock was set. Then nothing is claimed until `not_before`: the holders renew their leases first.
local ready, time = key('ready', args.pair, args.priority), now()
local since_heartbeat = time - args.heartbeat
if since_heartbeat < 0 or since_heartbeat > tonumber(args.pause) or time < tonumber(args.not_before) then
  return {args.after}
end
local pending = redis.call('XPENDING', ready, GROUP, args.after, '+', args.count)
for _, row in ipairs(pending) do
  local entry, owner, idle = row[1], row[2], row[3]
  if idle >= tonumber(args.lease) then
    return {entry, redis.call('XCLAIM', ready, GROUP, args.worker, args.lease, entry)[1]}
  elseif idle == 0 then -- claimed just now, or later than now by a clock that was set back: its lease begins now
    redis.call('XCLAIM', ready, GROUP, owner, 0, entry, 'JUSTID')
  end
end
return {#pending == tonumber(args.count) and '(' .. pending[#pending][1] or '-'}
