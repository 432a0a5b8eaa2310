"""Events of a job: readers follow its stream up to its end, all of a process by one blocking read."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from bestofn.service.core.jobs import ACTIVE, JobStatus
from bestofn.service.queue.codec import ENDINGS, reading

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue

BLOCK_SECONDS = 5.0
JOIN_SECONDS = 0.05  # a reader that comes while the others wait is included after this long
PACE_SECONDS = 0.02  # between two reads that return entries: what comes meanwhile is read together
READER_SECONDS = 0.0005  # the same for each reader that got some: hundreds of them get more at once, less often
WOKEN_AT_ONCE = 16  # readers, before the event loop goes on
MAX_ENTRIES = 256  # entries of one stream and read

Entry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(slots=True, eq=False)
class _Reader:
    after: str
    endings_only: bool
    future: "asyncio.Future[Sequence[Entry]]"
    entries: Sequence[Entry] = ()


class EventFeed:
    """Reads the streams of all followed jobs, and hands each reader its entries."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._readers: defaultdict[str, set[_Reader]] = defaultdict(set)  # by the stream's key
        self._task: asyncio.Task[None] | None = None

    async def read(self, key: str, after: str, seconds: float, *, endings_only: bool = False) -> Sequence[Entry]:
        """The next entries of a stream.

        Args:
            key: Redis key of the stream.
            after: id of the last entry that the reader has.
            seconds: longest wait.
            endings_only: return at the job's last event, without the entries before it.

        Returns:
            The entries, at most 256; none if none came.

        Raises:
            RedisError: the server was lost meanwhile.
        """
        reader = _Reader(after, endings_only, asyncio.get_running_loop().create_future())
        self._readers[key].add(reader)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            await asyncio.wait([reader.future], timeout=seconds)
            return reader.future.result() if reader.future.done() else reader.entries
        finally:
            self._forget(key, reader)

    async def aclose(self) -> None:
        """End the read; calls that follow a job get redis' ConnectionError."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._readers:
                after = {key: min((r.after for r in readers), key=numbers_of) for key, readers in self._readers.items()}
                reply = await self._redis.xread(after, block=round(1000 * JOIN_SECONDS), count=MAX_ENTRIES)
                handed = 0
                for key, entries in reply:
                    for reader in self._next(key.decode(), entries):
                        handed += 1
                        if handed % WOKEN_AT_ONCE == 0:
                            await asyncio.sleep(0)
                        if not reader.future.done():
                            reader.future.set_result(reader.entries)
                if handed:
                    await asyncio.sleep(max(PACE_SECONDS, READER_SECONDS * handed))
        except Exception as error:
            self._fail(error)
        finally:
            self._task = None
            self._fail(RedisConnectionError("the connection to the queue was closed"))

    def _next(self, key: str, entries: Sequence[Entry]) -> list[_Reader]:
        """The readers that get some of these entries, which are noted in each; they are readers no more."""
        ended = entries[-1][1][b"type"].decode() in ENDINGS
        found = []
        for reader in list(self._readers.get(key, ())):
            if reader.endings_only and not ended:
                reader.after = entries[-1][0].decode()
                continue
            after = numbers_of(reader.after)
            own = (
                entries
                if numbers_of(entries[0][0].decode()) > after
                else [entry for entry in entries if numbers_of(entry[0].decode()) > after]
            )
            if own:
                reader.entries = own[-1:] if reader.endings_only else own
                self._forget(key, reader)
                found.append(reader)
        return found

    def _forget(self, key: str, reader: _Reader) -> None:
        readers = self._readers.get(key)
        if readers is not None:
            readers.discard(reader)
            if not readers:
                del self._readers[key]

    def _fail(self, error: Exception) -> None:
        for readers in self._readers.values():
            for reader in readers:
                if not reader.future.done():
                    reader.future.set_exception(type(error)(*error.args))  # one each: tracebacks grow
        self._readers.clear()


def numbers_of(entry: str) -> tuple[int, int]:
    """An entry's id as numbers, which compare in the stream's order."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence or 0)


async def follow_entries(queue: "Queue", job: str, after: str = "0") -> AsyncGenerator[Sequence[Entry], None]:
    """Events of a job after the one with id `after`, as they come, up to its last event.

    They are as stored, for `Event.read`: as many at once as there are, at most 256. The stream is capped: a late reader
    misses the oldest events.

    Raises:
        JobNotFound, JobGone: there is no such job, at the start or while following it.
        JobUnreadable: the job's status cannot be read.
    """
    key = queue.keys("events", job)
    seconds = 0.0
    ended, status = False, JobStatus.QUEUED
    while True:
        if seconds:
            entries = await queue.feed.read(key, after, seconds)
        else:
            reply = await queue.redis.xread({key: after}, count=MAX_ENTRIES)
            entries = reply[0][1] if reply else ()
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
            # A job that has ended may have done so since the last read: then its last event is there now.
            status = await _status(queue, job)
            ended = status not in ACTIVE
            seconds = 0.0 if ended else BLOCK_SECONDS


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
        ended = await _status(queue, job) not in ACTIVE
        if ended or await queue.feed.read(key, after, BLOCK_SECONDS, endings_only=True):
            return


async def last_place(queue: "Queue", job: str) -> tuple[int, int] | None:
    """Id of the last event of a job that has ended, as numbers; None while it goes on."""
    last = await queue.redis.xrevrange(queue.keys("events", job), count=1)
    if not last:
        return 0, 0  # a canceled job whose stream is gone: readers get its end under this id
    (entry, fields), *_ = last
    if fields[b"type"].decode() not in ENDINGS:
        return None
    return numbers_of(entry.decode())


async def _status(queue: "Queue", job: str) -> JobStatus:
    text = await queue.redis.hget(queue.keys("job", job), "status")
    if text is None:
        await queue.missing(job)
    with reading("the job's stored status"):
        return JobStatus(text.decode())
