"""Queue position of a waiting job, and its estimated wait."""

from typing import TYPE_CHECKING

from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.scheduling import wait_seconds
from bestofn.service.queue.codec import QueuePosition
from bestofn.service.queue.keys import PRIORITIES, pair_id

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue


async def read_position(queue: "Queue", spec: JobSpec) -> QueuePosition:
    """Queue position of a waiting job and the time until its start; empty for a job that has started."""
    pair = pair_id(spec.schema_version, *spec.revisions)
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.hmget(queue.keys("job", spec.id), ["status", "next", "caller"])
        pipe.zrange(queue.keys("ring", pair, spec.priority), 0, -1)
        for priority in PRIORITIES[: PRIORITIES.index(spec.priority) + 1]:
            pipe.get(queue.keys("dispatched", pair, priority))
        (status, own, caller), callers, *dealt = await pipe.execute()
    if status != JobStatus.QUEUED.encode():
        return QueuePosition()
    jobs = {name: queue.keys("jobs", pair, spec.priority, name.decode()) for name in callers}
    async with queue.redis.pipeline(transaction=False) as pipe:
        pipe.lpos(jobs.get(caller, ""), spec.id)
        for name in jobs:
            pipe.llen(jobs[name])
        place, *lengths = await pipe.execute()
    turns, mine = int(place or 0), callers.index(caller) if caller in jobs else 0
    # One heat of each job of its caller before this one; in the same time, about as many of each other caller.
    others = (min(n, turns + (i < mine)) for i, n in enumerate(lengths) if i != mine)
    before = turns + sum(others)
    workers = [info for info in await queue.workers() if info.revisions == spec.revisions]
    # What is dispatched already goes first, its own heats aside.
    dispatched = sum(int(count or 0) for count in dealt) - spec.schedule.first(int(own))
    ahead = max(0, dispatched) + before * spec.heat_size
    return QueuePosition(before + 1, wait_seconds(ahead, await queue.backlog(), workers))
