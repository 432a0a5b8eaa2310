"""Leftovers: jobs whose workers of another version or whose callers are gone, and images of jobs that are gone."""

from bestofn.service.core import jobs
from bestofn.service.core.jobs import JobStatus
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import opaque

KEPT_SECONDS = 60  # jobs whose caller hung up wait this long for a retry of the call
ORPHAN_SECONDS = 600.0  # jobs of another version wait this long for a worker of that version


async def sweep(queue: Queue) -> list[str]:
    """Fail orphaned jobs, and delete image files of jobs that are expired or canceled.

    Returns:
        The jobs that failed.
    """
    patience = int(1000 * ORPHAN_SECONDS)
    failed = await queue.scripts("orphans", schema_version=jobs.SCHEMA_VERSION, patience=patience)
    stored = await queue.images.jobs()
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job in stored:
            pipe.hget(queue.keys("job", job), "status")
        known = await pipe.execute()
    gone = (None, JobStatus.CANCELED.encode())
    await queue.images.forget(job for job, status in zip(stored, known, strict=True) if status in gone)
    return [job.decode() for job in failed]


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
