"""Events of a job: readers follow the job's stream up to its end, or wait for its end alone."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from bestofn.service.core.jobs import ACTIVE, JobStatus
from bestofn.service.queue.codec import ENDINGS, Event, reading
from bestofn.service.queue.event_feed import MAX_ENTRIES, Entry, numbers_of

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
    async with aclosing(follow_entries(queue, job, after)) as batches:
        async for entries in batches:
            for entry in entries:
                yield Event.read(*entry)


async def follow_entries(queue: "Queue", job: str, after: str = "0") -> AsyncGenerator[Sequence[Entry], None]:
    """The same events as they are stored, for `Event.read`: as many at once as there are, at most 256.

    Raises:
        JobNotFound, JobGone: there is no such job, at the start or while following it.
    """
    key = queue.keys("events", job)
    seconds = 0.0
    ended, status = False, JobStatus.QUEUED
    while True:
        entries = await _entries(queue, key, after, seconds)
        if entries:
            yield entries
            last, fields = entries[-1]
            if fields[b"type"].decode() in ENDINGS:
                return
            after = last.decode()
        else:
            if ended:
                if status is JobStatus.CANCELED and not await queue.redis.exists(key):
                    place = after if "-" in after else "0-0"  # the stored one goes soon after the end
                    data = json.dumps({"status": status}).encode()
                    yield [(place.encode(), {b"type": b"canceled", b"data": data})]
                return  # else `after` was the last event
            status, seconds = await _patience(queue, job)
            ended = status not in ACTIVE


async def wait_for_end(queue: "Queue", job: str) -> None:
    """Return at the job's end, without reading its events.

    Raises:
        JobNotFound, JobGone: there is no such job, at the start or meanwhile.
        JobUnreadable: the job's status cannot be read.
    """
    key = queue.keys("events", job)
    last = await queue.redis.xrevrange(key, count=1)
    after = last[0][0].decode() if last else "0"
    while True:
        status, seconds = await _patience(queue, job)
        if status not in ACTIVE or (seconds and await queue.feed.read(key, after, seconds, endings_only=True)):
            return


async def last_place(queue: "Queue", job: str) -> tuple[int, int] | None:
    """Id of the last event of a job that has ended, as numbers; None while it goes on."""
    last = await queue.redis.xrevrange(queue.keys("events", job), count=1)
    if not last:
        return 0, 0  # of a canceled job whose stream is gone: readers get its end under this id
    (entry, fields), *_ = last
    if fields[b"type"].decode() not in ENDINGS:
        return None
    return numbers_of(entry.decode())


async def _entries(queue: "Queue", key: str, after: str, seconds: float) -> Sequence[Entry]:
    """Entries after `after`: those that are there, or with `seconds` the next ones within that time."""
    if seconds:
        return await queue.feed.read(key, after, seconds)
    reply = await queue.redis.xread({key: after}, count=MAX_ENTRIES)
    return reply[0][1] if reply else ()


async def _patience(queue: "Queue", job: str) -> tuple[JobStatus, float]:
    """The job's status, and the seconds to wait for its next event; 0: it has ended, or its deadline has passed."""
    text, deadline = await queue.redis.hmget(queue.keys("job", job), ["status", "deadline"])
    if text is None:
        await queue.missing(job)
    with reading("the job's stored status"):
        status, deadline = JobStatus(text.decode()), None if deadline is None else int(deadline)
    # A job that has ended may have done so since the last read: then its last event is there now.
    if status not in ACTIVE:
        return status, 0.0
    if deadline is None:
        return status, BLOCK_SECONDS
    seconds, micros = await queue.redis.time()
    left = (deadline - int(1000 * seconds + micros // 1000)) / 1000
    if left <= 0:
        await queue.expire_jobs()
        return status, 0.0
    return status, min(BLOCK_SECONDS, left + 0.001)
