"""Leftovers: jobs whose workers of another version are gone, and images of jobs that are gone."""

from bestofn.service.core import jobs
from bestofn.service.core.jobs import JobStatus
from bestofn.service.queue.job_queue import Queue

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
