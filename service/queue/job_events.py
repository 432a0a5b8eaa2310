"""Events of a job: one reader follows the job's stream up to its end."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from bestofn.service.core.jobs import ACTIVE, JobStatus
from bestofn.service.queue.codec import ENDINGS, Event, reading

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue

BLOCK_SECONDS = 5.0


async def follow(queue: "Queue", job: str, after: str) -> AsyncGenerator[Event, None]:
    """Events of a job after the one with id `after`, as they come, up to its last event.

    The stream is capped: a late reader misses the oldest events.

    Raises:
        JobNotFound, JobGone: there is no such job, at the start or while following it.
        JobUnreadable: an event or the job's status cannot be read.
    """
    key = queue.keys("events", job)
    block: int | None = None
    ended, status = False, JobStatus.QUEUED
    while True:
        reply = await queue.redis.xread({key: after}, block=block, count=256)
        for entry, fields in reply[0][1] if reply else ():
            event = Event.read(entry, fields)
            yield event
            if event.type in ENDINGS:
                return
            after = event.id
        if not reply:
            if ended:
                if status is JobStatus.CANCELED and not await queue.redis.exists(key):
                    place = after if "-" in after else "0-0"
                    yield Event(place, "canceled", {"status": status})  # the stored one goes soon after the end
                return  # else `after` was the last event
            text, deadline = await queue.redis.hmget(queue.keys("job", job), ["status", "deadline"])
            if text is None:
                await queue.missing(job)
            with reading("the job's stored status"):
                status, deadline = JobStatus(text.decode()), None if deadline is None else int(deadline)
            # A job that has ended may have done so since the read: then its last event is there now.
            ended = status not in ACTIVE
            block = None if ended else await _patience(queue, deadline)


async def _patience(queue: "Queue", deadline: int | None) -> int | None:
    """Milliseconds to wait for the next event of a job with this deadline; None: the deadline has just ended it."""
    if deadline is None:
        return int(1000 * BLOCK_SECONDS)
    left = deadline - await _now(queue)
    if left <= 0:
        await queue.expire_jobs()
        return None
    return min(int(1000 * BLOCK_SECONDS), left + 1)


async def _now(queue: "Queue") -> int:
    """The server's time in milliseconds."""
    seconds, micros = await queue.redis.time()
    return int(1000 * seconds + micros // 1000)
