"""Why running jobs stand still, if they do: asked at most once a second, however many callers look at their jobs."""

import time
from collections.abc import Callable

from bestofn.service.queue.job_queue import Queue

FRESH_SECONDS = 1.0


class Standstill:
    """Jobs go on unless the queue's server takes no writes, as when its disk is full."""

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._reason: str | None = None
        self._stale_at = 0.0

    async def reason(self) -> str | None:
        """In plain words; None if jobs go on."""
        if self._clock() >= self._stale_at:
            self._stale_at = self._clock() + FRESH_SECONDS
            self._reason = await self._queue.refuses(jobs=False)
        return self._reason
