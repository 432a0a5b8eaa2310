"""A worker process: one engine and one consumer of the queue, from loading to its end."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from redis.exceptions import RedisError

from bestofn.service.core.settings import Settings
from bestofn.service.core.version import COMMIT, VERSION
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.protocol import Engine
from bestofn.service.host.cgroups import raise_descriptor_limit
from bestofn.service.pairwise.openai_judge import VisionJudge
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.leftovers import sweep
from bestofn.service.telemetry import metrics
from bestofn.service.worker.claims import ClaimLoop
from bestofn.service.worker.completion import Completion
from bestofn.service.worker.context import WorkerContext, retried
from bestofn.service.worker.engine_thread import EngineThread
from bestofn.service.worker.finals import FinalsPlayer
from bestofn.service.worker.health_server import Condition, LoopMonitor, metrics_port
from bestofn.service.worker.heartbeat import heartbeat_loop
from bestofn.service.worker.heat_log import log_end
from bestofn.service.worker.held_heats import Failed, HeldHeats
from bestofn.service.worker.job_control import JobControl
from bestofn.service.worker.supervisor import announce_ready

LEAVE_SECONDS = 5.0  # for giving heats back; a queue that is away for longer lets the leases expire
SWEEP_SECONDS = 60.0  # between two sweeps of expired image files
WEIGHTS_SECONDS = 2.0  # between two looks for weights that another process downloads
WEIGHTS_LOG_SECONDS = 60.0  # between two lines of the log that name them

log = structlog.get_logger()


def no_weights() -> Sequence[str]:
    """Of an engine that waits for none."""
    return ()


def run_worker(
    settings: Settings, engine_factory: Callable[[], Engine], missing_weights: Callable[[], Sequence[str]] = no_weights
) -> int:
    """Run one worker until SIGTERM or SIGINT.

    Args:
        settings: settings of the worker.
        engine_factory: makes the engine; called in the thread that the engine then lives in.
        missing_weights: names of weights that another process still downloads. The engine is made when there are none.

    Returns:
        The exit status; 1: the engine died.

    Raises:
        SetupError: there is no queue or no such pairwise judge, or whatever the factory raises.
    """
    raise_descriptor_limit()
    worker = Worker(settings, engine_factory, missing_weights)
    status = asyncio.run(worker.run())
    if worker.hangs:
        os._exit(status)  # a device that does not answer would delay the interpreter's exit too
    return status


class Worker:
    """One engine, one consumer of the queue. A queue that is away is waited for; a dead engine ends the worker."""

    def __init__(
        self,
        settings: Settings,
        engine_factory: Callable[[], Engine],
        missing_weights: Callable[[], Sequence[str]] = no_weights,
    ) -> None:
        self.settings = settings
        self.hangs = False  # known at the end: the engine's thread is stuck in a tick
        self._factory = engine_factory
        self._missing_weights = missing_weights
        self._waits_for_weights = False
        self._stop = asyncio.Event()
        self._vision: VisionJudge | None = None
        self._queue: Queue
        self._engine_thread: EngineThread
        self._context: WorkerContext | None = None  # set once the worker has announced itself
        self._completion: Completion
        self._monitor = LoopMonitor()

    async def run(self) -> int:
        """Load, serve, drain; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        with metrics_port(self.settings.metrics_host, self.settings.metrics_port, self._condition) as port:
            if port is not None:
                log.info("metrics", port=port)
            monitor = asyncio.create_task(self._monitor.run())
            try:
                return await self._run()
            finally:
                monitor.cancel()

    async def _run(self) -> int:
        if self.settings.pairwise_judge:
            self._vision = VisionJudge(self.settings.pairwise_judge, self.settings.pairwise_api_key)
        if not await self._before_stop(self._connect()):
            return 0
        if not await self._before_stop(self._wait_for_weights()):
            await self._queue.aclose()
            return 0
        self._engine_thread = EngineThread(self._factory, lambda events: self._completion.on_events(events))
        try:
            if await self._before_stop(self._engine_thread.load()):
                await self._serve()
            return 1 if self._engine_thread.died.is_set() else 0
        finally:
            self.hangs = not await self._engine_thread.stop()
            await self._queue.aclose()
            if self._vision is not None:
                await self._vision.aclose()

    async def _connect(self) -> None:
        self._queue = await retried(lambda: Queue.connect(self.settings))

    async def _wait_for_weights(self) -> None:
        logged: float | None = None
        while missing := await asyncio.to_thread(self._missing_weights):
            self._waits_for_weights = True
            if logged is None or time.monotonic() - logged >= WEIGHTS_LOG_SECONDS:
                log.warning("waiting for weights", missing=list(missing))
                logged = time.monotonic()
            await asyncio.sleep(WEIGHTS_SECONDS)
        self._waits_for_weights = False

    async def _info(self) -> WorkerInfo:
        engine = self._engine_thread.engine
        seconds, micros = await retried(self._queue.redis.time)
        return WorkerInfo(
            worker=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.settings.devices,
            capacity=engine.slots,
            model=engine.model_info,
            judge=engine.judge_info,
            started_at=seconds + micros / 1e6,
            version=VERSION,
            commit=COMMIT,
            pairwise_judge=None if self._vision is None else self._vision.address.model,
        )

    async def _serve(self) -> None:
        info = await self._info()
        context = WorkerContext(
            self.settings,
            self._queue,
            QueueConsumer(self._queue, info),
            self._engine_thread,
            self._vision,
            HeldHeats(self.settings.max_deliveries),
        )
        finals = FinalsPlayer(context)
        control = JobControl(context, finals)
        claims = ClaimLoop(context, finals)
        self._completion = Completion(context, control)
        await context.announce()
        self._context = context
        model, judge = info.model.revision.name, info.judge.revision.name
        metrics.SLOTS.set(info.capacity)
        metrics.LEASES.set_function(lambda: len(context.held))
        metrics.WORKER.info({"device": info.device, "model": model, "judge": judge})
        announce_ready()
        log.info("ready", worker=info.worker, model=model, judge=judge, slots=info.capacity)
        loops = (
            heartbeat_loop(context),
            claims.run(),
            control.listen(),
            self._completion.publish_loop(),
            self._completion.run(),
            self._sweep(),
            finals.run(),
        )
        tasks = [asyncio.create_task(loop) for loop in loops]
        died = asyncio.create_task(self._engine_thread.died.wait())
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, died, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks([*tasks, died, stop])
        for task in done & set(tasks):
            task.result()  # a loop ends only by a bug of ours
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._leave(context)

    async def _leave(self, context: WorkerContext) -> None:
        """Give all heats back: without a spent delivery after SIGTERM, with one if the engine died."""
        await self._completion.drain()
        if self._engine_thread.died.is_set():
            error = self._engine_thread.error
            log.error("the engine died", error=repr(error))
            failure = Failed(f"the engine of worker {context.consumer.worker} died: {error}")
            for held in context.held:
                if held.in_engine:
                    await self._completion.fail(held.claim, failure)
        claims = context.held.claims()
        await context.call(lambda: context.consumer.leave(claims))
        for claim in claims:
            log_end(context.held, claim, "released")
        log.info("left", worker=context.consumer.worker, released=len(claims))

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):  # the queue is away, or another worker sweeps: later
                for job in await sweep(self._queue):
                    log.warning("a job of another version failed: its workers are gone", job_id=job)
            await asyncio.sleep(SWEEP_SECONDS)

    def _condition(self) -> Condition:
        if self._monitor.stalled(self.settings.stall_seconds):
            return Condition.STALLED
        if self._stop.is_set():
            return Condition.LEAVING
        if self._context is None:
            return Condition.WAITING if self._waits_for_weights else Condition.STARTING
        if self._context.stalled():
            return Condition.STALLED
        return Condition.BUSY if self._context.held else Condition.READY

    async def _before_stop(self, work: Awaitable[None]) -> bool:
        """Whether `work` was done before the worker was asked to stop."""
        task, stop = asyncio.ensure_future(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        return False
