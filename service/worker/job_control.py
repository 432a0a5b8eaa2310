"""Jobs that end before their heats: canceled, stopped or expired. Their heats leave the engine at its next tick."""

import asyncio
import time

import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from bestofn.service.queue.connection_errors import away
from bestofn.service.worker.context import LAST_RETRY_SECONDS, WorkerContext
from bestofn.service.worker.finals import FinalsPlayer
from bestofn.service.worker.held_heats import Released

POLL_SECONDS = 5.0

log = structlog.get_logger()


class JobControl:
    """Drops heats of ended jobs, as the control channel or a refused progress report names them."""

    def __init__(self, context: WorkerContext, finals: FinalsPlayer) -> None:
        self._context = context
        self._finals = finals

    def drop(self, job: str) -> None:
        """Drop a job's heats except its finals: a job that waits for its finals needs no more candidates."""
        context = self._context
        context.ended_jobs.append(job)
        heats = context.held.of_job(job, finals=False)
        if not heats:
            return
        context.engine_thread.cancel(job)
        context.progress.drop(job)
        for held in heats:
            context.end(held.claim.key, Released())

    async def listen(self) -> None:
        """Subscribe to the control channel and drop every job it names."""
        channel = self._context.queue.keys("control")
        while True:
            try:
                async with self._context.queue.redis.pubsub() as control:
                    await control.subscribe(channel)
                    await self._read(control)
            except RedisError as error:
                if not away(error):
                    raise
            await asyncio.sleep(LAST_RETRY_SECONDS / 4)  # meanwhile progress reports say which jobs have ended

    async def _read(self, control: PubSub) -> None:
        """Read messages until the connection is lost.

        redis-py takes a socket error in a read with a time limit for the end of that limit. `get_message` then returns
        None at once, again and again. So None before the limit means that the connection is lost.
        """
        while True:
            began = time.monotonic()
            message = await control.get_message(timeout=POLL_SECONDS)
            if message is None:
                if time.monotonic() - began < POLL_SECONDS / 2:
                    log.warning("the control channel is lost")
                    return
            elif message["type"] == "message":
                job = message["data"].decode()
                self.drop(job)
                self._finals.drop(job)
