"""What the loops of one worker share: settings, queue, engine thread and the heats it holds."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from bestofn.service.core.settings import Settings
from bestofn.service.pairwise.openai_judge import VisionJudge
from bestofn.service.queue.connection_errors import away, moved, why
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.telemetry.metrics import LEASES_LOST
from bestofn.service.worker.engine_thread import EngineThread
from bestofn.service.worker.held_heats import HeatKey, HeatResult, HeldHeats
from bestofn.service.worker.progress_buffer import ProgressBuffer

INFO_TTL_HEARTBEATS = 4  # a worker's info expires after this many missed heartbeats
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
RECENT_JOBS = 1000

T = TypeVar("T")
log = structlog.get_logger()


async def retried(
    call: Callable[[], Awaitable[T]],
    restore: Callable[[], Awaitable[None]] | None = None,
    reconnect: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Repeat a queue call until the queue's server answers.

    Args:
        call: the call; each attempt makes a new awaitable.
        restore: recreates the consumer groups of a server that has lost its data.
        reconnect: drops connections to a server that is not the queue's any more.
    """
    pause = FIRST_RETRY_SECONDS
    while True:
        try:
            return await call()
        except RedisError as error:
            if away(error):
                if pause >= LAST_RETRY_SECONDS:
                    log.warning("the queue is away", reason=why(error), error=str(error))
                if reconnect is not None and moved(error):
                    await reconnect()
            elif restore is not None and isinstance(error, ResponseError) and "NOGROUP" in str(error):
                await restore()
            else:
                raise
        await asyncio.sleep(pause)
        pause = min(LAST_RETRY_SECONDS, 2 * pause)


@dataclass
class WorkerContext:
    """The shared state of one worker's loops. All of it belongs to the event loop.

    Attributes:
        vision: pairwise judge of finals; None if the worker has none.
        held: claimed heats, each with its state.
        ended: keys of held heats whose result the queue has not recorded yet.
        ended_jobs: jobs that ended before their heats did, the last of them.
        tflops_per_second: average speed of the device; None before its first heat.
    """

    settings: Settings
    queue: Queue
    consumer: QueueConsumer
    engine_thread: EngineThread
    vision: VisionJudge | None
    held: HeldHeats
    progress: ProgressBuffer = field(default_factory=ProgressBuffer)
    ended: "asyncio.Queue[HeatKey]" = field(default_factory=asyncio.Queue)
    ended_jobs: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT_JOBS))
    tflops_per_second: float | None = None

    def end(self, key: HeatKey, result: HeatResult) -> None:
        """Note a heat's result, for the completion loop; the first result of a heat counts."""
        if self.held.end(key, result):
            self.ended.put_nowait(key)

    def stalled(self, factor: float = 1.0) -> bool:
        """Whether the engine's tick has not returned for `factor` times the stall time."""
        return self.engine_thread.stalled(self.settings.stall_seconds, factor)

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a queue call until the server answers; announce the worker again if the server lost its data."""
        return await retried(call, self.announce, self.queue.drop_connections)

    async def announce(self) -> None:
        """Publish this worker, which creates its consumer groups, and renew its leases."""
        engine = self.engine_thread.engine
        drop = self.queue.drop_connections
        await retried(lambda: self.consumer.store_tokenizers(engine.tokenizer_files), reconnect=drop)
        await retried(self._heartbeat, reconnect=drop)

    async def _heartbeat(self) -> None:
        seconds = INFO_TTL_HEARTBEATS * self.settings.heartbeat_seconds
        state = "busy" if self.held else "ready"
        lost = await self.consumer.heartbeat(
            self.held.claims(), seconds, state, self.tflops_per_second, self.engine_thread.engine.blocks
        )
        if lost:
            LEASES_LOST.inc(len(lost))
            log.warning("leases lost; other workers run these heats too", entries=sorted(lost))
