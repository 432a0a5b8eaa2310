"""Reads of jobs: a heat is decoded once, a large job off the event loop, and what is decoded is kept in bounds."""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.jobs import Candidate, JobSpec, JobStatus
from bestofn.service.core.turns import Turns
from bestofn.service.queue.codec import (
    DecodedHeats,
    JobRecord,
    decode_heats,
    read_record,
    read_spec,
    unpack_leaders,
)
from bestofn.service.queue.scripts import Scripts

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue

KEPT_BYTES = 64 * 2**20
KEPT_SECONDS = 60.0  # after the last read: long enough for a caller who polls, and less than results live
CANDIDATE_BYTES = 1024  # memory of a decoded candidate; a second verdict takes as much again
RECORD_BYTES = 48  # least size of a candidate's stored record
AT_ONCE = 256  # candidates that the event loop decodes by itself

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Known:
    decoded: DecodedHeats | None = None
    size: int = 0
    read_at: float = 0.0
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class JobReader:
    """Reads records of jobs, and keeps what it has decoded of those read last.

    Attributes:
        decoded: number of candidates decoded so far.
        kept_bytes: estimated memory of the decoded heats that are kept, at most `max_bytes`.
    """

    def __init__(
        self, scripts: Scripts, max_bytes: int = KEPT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.decoded = 0
        self.kept_bytes = 0
        self._scripts = scripts
        self._max_bytes = max_bytes
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()  # the last read is the last
        self._thread = ThreadPoolExecutor(1, "job-reader")
        self._turns = Turns()

    async def record(self, job: str) -> JobRecord | None:
        """The record of a job, without its queue position; None: there is no such job.

        Calls for one job share the decoding: each waits for the one before it.

        Raises:
            JobUnreadable: with the job's status and error.
        """
        known = self._known.setdefault(job, _Known(read_at=self._clock()))
        try:
            async with known.reading:
                fields, new = await self._changes(job, known)
                if not fields:
                    known.decoded = None
                    return None
                try:
                    if new or known.decoded is None:
                        known.decoded = await self._decode(fields, new, known.decoded)
                    record = read_record(fields, known.decoded)
                except JobUnreadable as error:
                    known_text = {name: text.decode(errors="replace") for name, text in fields.items()}
                    error.job_status, error.job_error = known_text.get(b"status"), known_text.get(b"error")
                    raise
                self._keep(job, known, known.decoded)
                return record
        finally:
            if known.decoded is None:
                self._forget(job, known)

    async def off_loop(self, caller: str, work: Callable[[], T]) -> T:
        """Run work in the one thread for it.

        Callers take turns. After its turn, a caller's next one waits as long as the work took. The event loop shares
        the interpreter with the thread, and so gets at least as much time.
        """
        spent = 0.0

        def timed() -> T:
            nonlocal spent
            begun = time.monotonic()
            try:
                return work()
            finally:
                spent = time.monotonic() - begun

        turn = self._turns.of(caller)
        await turn.acquire()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, timed)
        finally:
            loop.call_later(spent, turn.release)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _changes(self, job: str, known: _Known) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """The job's hash, and the records that are not decoded yet."""
        heats = known.decoded.heats if known.decoded is not None else []
        fields, number, new = await self._scripts("read_changes", job=job, known=json.dumps(heats))
        found, changes = _pairs(fields), _pairs(new)
        same = number == len(heats) + len(changes) and (
            known.decoded is None or known.decoded.text == found.get(b"spec")
        )
        if not same:  # an early stop has dropped heats
            known.decoded = None
            return await self._changes(job, known)
        return found, changes

    async def _decode(
        self, fields: Mapping[bytes, bytes], new: Mapping[bytes, bytes], before: DecodedHeats | None
    ) -> DecodedHeats:
        known = len(before.ranking.order) if before is not None else 0
        succeeded = fields.get(b"status") == b"succeeded"
        work = partial(decode_heats, fields.get(b"spec"), new, before, bracket=succeeded)
        if known + sum(map(len, new.values())) // RECORD_BYTES > AT_ONCE:
            decoded = await self.off_loop(fields.get(b"caller", b"").decode(), work)
        else:
            decoded = work()
        self.decoded += len(decoded.ranking.order) - known
        return decoded

    def _keep(self, job: str, known: _Known, decoded: DecodedHeats) -> None:
        self._forget(job, self._known.get(job))
        self._known[job] = known
        verdicts = 1 + (decoded.spec.draft is not None) + (len(decoded.spec.judges) - 1)
        known.size = 8 * len(decoded.text) + CANDIDATE_BYTES * verdicts * (1 + len(decoded.ranking.order))
        self.kept_bytes += known.size
        known.read_at = now = self._clock()
        while self._known:
            name, other = next(iter(self._known.items()))
            if self.kept_bytes <= self._max_bytes and now - other.read_at <= KEPT_SECONDS:
                break
            self._forget(name, other)

    def _forget(self, job: str, known: _Known | None) -> None:
        if known is not None and self._known.get(job) is known:
            del self._known[job]
            self.kept_bytes -= known.size
            known.size = 0


@dataclass(frozen=True, slots=True)
class Winners:
    """A job's winners, best first; `spec` is None and there are none unless the job has succeeded."""

    status: JobStatus
    spec: JobSpec | None = None
    candidates: Sequence[Candidate] = ()


async def read_winners(queue: "Queue", job: str) -> Winners:
    """Read the winners of a job. Raises JobNotFound, JobGone, JobUnreadable."""
    text, status, stopped, leaders = await queue.redis.hmget(
        queue.keys("job", job), ["spec", "status", "stopped", "leaders"]
    )
    if status is None:
        await queue.missing(job)
    state = JobStatus(status.decode())
    if state is not JobStatus.SUCCEEDED:
        return Winners(state)
    spec = read_spec(text)
    late = stopped == b"deadline"  # then the stored leaders are those of the decided prefix alone
    order = (await queue.record(job)).ranking.order if late else unpack_leaders(spec, leaders)
    return Winners(state, spec, [candidate for candidate in order[: spec.top_k] if candidate.has_image])


def _pairs(flat: list[Any]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
