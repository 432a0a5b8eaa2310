"""A call under /v1 that hangs up: its job is canceled, unless an OpenAI client makes the call again and joins it."""

import asyncio
import contextlib
from dataclasses import dataclass

from bestofn.service.api.dependencies import Context
from bestofn.service.queue.keys import opaque

HEADER = "x-stainless-retry-count"  # 0 in the first request of a call, then 1, 2, ...
FIRST_PAUSE_SECONDS = 0.5  # pause of the OpenAI clients before a retry; doubled each time
LONGEST_PAUSE_SECONDS = 8.0
MARGIN_SECONDS = 2.0
KEPT_SECONDS = 60  # a job that was left waits this long for a retry


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a call without an Idempotency-Key.

    Attributes:
        name: the same in all requests of the call, and in equal calls of the same caller.
        retries: requests of the call before this one; None: the client does not say.
    """

    name: str
    retries: int | None

    @classmethod
    def of(cls, caller: str, fingerprint: str, header: str | None) -> "Call":
        """The call of a caller. `fingerprint` is of its request, `header` the value of x-stainless-retry-count."""
        counted = header is not None and header.isdecimal() and len(header) < 4
        return cls(f"{caller}:{fingerprint}", int(header or 0) if counted else None)

    async def join(self, context: Context) -> str | None:
        """The job of the request that is retried; None if it left none, or if this is the first."""
        job = await context.queue.redis.lpop(self._key(context)) if self.retries else None
        return None if job is None else str(job.decode())

    async def leave(self, context: Context, job_id: str) -> None:
        """The caller has gone: cancel its job, with a client that retries once no retry has come in time."""
        if self.retries is None:
            await context.queue.cancel(job_id)
            return
        async with context.queue.redis.pipeline(transaction=True) as pipe:
            pipe.rpush(self._key(context), job_id)
            pipe.expire(self._key(context), KEPT_SECONDS)
            await pipe.execute()
        context.later(self._cancel(context, job_id))

    async def _cancel(self, context: Context, job_id: str) -> None:
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self.retries or 0, 8), LONGEST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(context.stopping.wait(), pause + MARGIN_SECONDS)
            return  # another process serves the retry
        if await context.queue.redis.lrem(self._key(context), 1, job_id):  # else a retry has taken it over
            await context.queue.cancel(job_id)

    def _key(self, context: Context) -> str:
        """The list of jobs that such calls have left."""
        return context.queue.keys("orphans", opaque(self.name))
