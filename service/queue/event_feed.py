"""One blocking read for all followed jobs of a process: hundreds of waiting calls take one connection to Redis."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from bestofn.service.queue.codec import ENDINGS

JOIN_SECONDS = 0.05  # a reader that comes while the others wait is included after this long
PACE_SECONDS = 0.02  # between two reads that return entries: what comes meanwhile is read together
READER_SECONDS = 0.0005  # the same for each reader that got some: hundreds of them get more at once, less often
WOKEN_AT_ONCE = 16  # readers, before the event loop goes on
MAX_ENTRIES = 256  # of one stream and read

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
