"""The jobs of a soak that were accepted: which have ended and how, and how much work has been done on them."""

import asyncio
import time
from dataclasses import dataclass, field

from place import Place

from bestofn.service.core.jobs import ENDED, JobStatus

LOOK_SECONDS = 1.0


@dataclass
class Book:
    """The jobs of one pair that were accepted: which have ended how, and how much work has been done on them."""

    here: Place
    seconds: list[float] = field(default_factory=list)  # from submission to the end
    how: dict[str, JobStatus] = field(default_factory=dict)  # of those that have ended
    _open: dict[str, tuple[float, float, asyncio.Event]] = field(default_factory=dict)  # TFLOP, since, end
    _part: dict[str, float] = field(default_factory=dict)  # of the open ones, how much is done
    _known: set[str] = field(default_factory=set)
    _done: float = 0.0

    @property
    def work(self) -> float:
        """TFLOP of jobs that succeeded, and of the others' steps so far."""
        return self._done + sum(self._open[job][0] * part for job, part in self._part.items())

    async def until_end(self, job: str, cost: float, since: float) -> None:
        """Returns when the job has ended; never, if it is stuck."""
        if job in self._known and job not in self._open:
            return
        self._known.add(job)
        _, _, end = self._open.setdefault(job, (cost, since, asyncio.Event()))
        await end.wait()

    async def watch(self) -> None:
        """Looks after the open jobs until it is canceled, on the queue itself, so that the API has no work by it."""
        redis, keys = self.here.queue.redis, self.here.queue.keys
        while True:
            jobs = list(self._open)
            async with redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.hmget(keys("job", job), "status", "steps", "total_steps")
                    pipe.get(keys("tombstone", job))
                found = await pipe.execute()
            for job, (status, steps, total), gone in zip(jobs, found[::2], found[1::2], strict=True):
                word = status_word(status, gone)
                if word is None:
                    continue  # lost, and so never ends
                cost, since, end = self._open[job]
                if word in ENDED:
                    self.seconds.append(time.monotonic() - since)
                    self.how[job] = word
                    part = 1.0 if word is JobStatus.SUCCEEDED else self._part.get(job, 0.0)
                    self._done += cost * part
                    del self._open[job]
                    self._part.pop(job, None)
                    end.set()
                else:
                    self._part[job] = int(steps or 0) / max(1, int(total or 1))
            await asyncio.sleep(LOOK_SECONDS)


def status_word(status: bytes | None, gone: bytes | None) -> JobStatus | None:
    """Of a job's status in the queue and of what is left of it when it has expired; None of neither."""
    word = status or gone
    return None if word is None else JobStatus(word.split()[0].decode())
