"""Jobs whose caller hung up and may call again: a retry of the same call takes one over, or it is canceled."""

from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import opaque

KEPT_SECONDS = 60


async def leave(queue: Queue, call: str, job: str) -> None:
    """Keep a job for the next retry of a call.

    Args:
        queue: holds the job.
        call: names the caller and its request; several calls may have the same name.
        job: followed by no other caller.
    """
    key = queue.keys("orphans", opaque(call))
    async with queue.redis.pipeline(transaction=True) as pipe:
        pipe.rpush(key, job)
        pipe.expire(key, KEPT_SECONDS)
        await pipe.execute()


async def adopt(queue: Queue, call: str) -> str | None:
    """Take over the job that was left first by such a call; None if there is none."""
    job = await queue.redis.lpop(queue.keys("orphans", opaque(call)))
    return None if job is None else str(job.decode())


async def cancel(queue: Queue, call: str, job: str) -> None:
    """Cancel a job that was left, unless a retry has taken it over."""
    if await queue.redis.lrem(queue.keys("orphans", opaque(call)), 1, job):
        await queue.cancel(job)
