"""A worker process: claims heats, keeps one engine full, renews leases, reports and completes."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError, ResponseError

from bestofn.service.core.errors import BestOfNError
from bestofn.service.core.finals import FinalsOutcome, FinalsState, not_played
from bestofn.service.core.jobs import HeatOutcome
from bestofn.service.core.scheduling import DeliveryAction, claim_count, delivery_action
from bestofn.service.core.settings import Settings
from bestofn.service.core.version import VERSION
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.protocol import Engine, EngineEvent, HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.pairwise.finals_runner import play
from bestofn.service.pairwise.openai_judge import VisionJudge
from bestofn.service.queue.connection_errors import away
from bestofn.service.queue.consumer import Claim, Judgement, QueueConsumer
from bestofn.service.queue.image_store import NotKept
from bestofn.service.queue.job_queue import Queue
from bestofn.service.telemetry import worker_metrics as metrics
from bestofn.service.worker.engine_thread import EngineThread
from bestofn.service.worker.health_server import Condition, metrics_port
from bestofn.service.worker.heat_log import HeatEnding, HeatLog
from bestofn.service.worker.progress_buffer import Reports, speed_after

LEAVE_SECONDS = 5.0
CANCEL_SECONDS = 0.1
REPORT_SECONDS = 0.25  # progress is published this often
HOPELESS = 5.0  # stalled for so many times the stall time, an engine is given up
INFO_TTL_HEARTBEATS = 4  # a card lapses after this many beats without one
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
SWEEP_SECONDS = 60.0  # between looks for pictures that nobody can ask for any more
FINALS_PAUSE = 0.5  # before finals are handed on to a worker who has the pairwise judge
OVER_KEPT = 1000  # jobs that have ended early, remembered

T = TypeVar("T")
log = structlog.get_logger()


def run_worker(settings: Settings, engine_factory: Callable[[], Engine]) -> int:
    """Runs one worker until SIGTERM or SIGINT; returns the exit status (1: the engine died).

    The factory is called in the thread that the engine then lives in.

    Raises:
        SetupError: no queue, no such pairwise judge, or what the factory raises.
    """
    worker = Worker(settings, engine_factory)
    status = asyncio.run(worker.run())
    if worker.hangs:
        os._exit(status)  # a device that does not answer would hold up the end of the interpreter as well
    return status


class Worker:
    """One engine, one consumer of the queue. A queue that is away is waited for; a dead engine ends the worker."""

    def __init__(self, settings: Settings, engine_factory: Callable[[], Engine]) -> None:
        self.settings = settings
        self._factory = engine_factory
        self._held: dict[tuple[str, int], Claim] = {}  # until they are completed or given up
        self._alone: list[tuple[str, int]] = []  # of those, heats that wait for an engine without other work
        self._vision: VisionJudge | None = None
        self._finals: asyncio.Queue[Claim] = asyncio.Queue()  # that are to be played
        self._playing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._over: dict[str, None] = {}  # jobs that have ended early, the last ones
        self._reports = Reports()
        self._publishing = asyncio.Lock()
        self._heat_log = HeatLog()
        self._trouble: str | None = None
        self._warm = False
        self.hangs = False  # known at the end: the engine's thread is stuck in a tick
        self._speed: float | None = None  # TFLOP a second
        self._ended: asyncio.Queue[tuple[Claim, HeatOutcome | FinalsOutcome | str]] = asyncio.Queue()
        self._stop = asyncio.Event()
        self._pause = min(settings.heartbeat_seconds, 1.0)  # between looks at what others may have left behind
        self._reclaim_at = 0.0
        self._engine_thread: EngineThread
        self._queue: Queue
        self._lane: QueueConsumer

    async def run(self) -> int:
        """Loads, serves, drains; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        with metrics_port(self.settings.metrics_host, self.settings.metrics_port, self._condition) as port:
            if port is not None:
                log.info("metrics", port=port)
            return await self._run()

    async def _run(self) -> int:
        if self.settings.pairwise_judge:
            self._vision = VisionJudge(self.settings.pairwise_judge, self.settings.pairwise_api_key)
        if not await self._first(self._connect()):
            return 0
        self._engine_thread = EngineThread(self._factory, self._on_events)
        try:
            if await self._first(self._engine_thread.load()):
                await self._serve()
            return 1 if self._engine_thread.died.is_set() else 0
        finally:
            self.hangs = not await self._engine_thread.stop()
            await self._queue.aclose()
            if self._vision is not None:
                await self._vision.aclose()

    async def _connect(self) -> None:
        self._queue = await self._persist(lambda: Queue.connect(self.settings))

    async def _serve(self) -> None:
        engine = self._engine_thread.engine
        seconds, micros = await self._persist(self._queue.redis.time)
        card = WorkerInfo(
            worker=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self.settings.devices,
            capacity=engine.slots,
            model=engine.model_info,
            judge=engine.judge_info,
            started_at=seconds + micros / 1e6,
            version=VERSION,
            pairwise_judge=None if self._vision is None else self._vision.address.model,
        )
        self._lane = QueueConsumer(self._queue, card)
        await self._announce()
        self._warm = True
        metrics.SLOTS.set(engine.slots)
        metrics.LEASES.set_function(lambda: len(self._held))
        metrics.WORKER.info(
            {"device": card.device, "model": card.model.revision.name, "judge": card.judge.revision.name}
        )
        log.info(
            "ready",
            worker=card.worker,
            model=card.model.revision.name,
            judge=card.judge.revision.name,
            slots=engine.slots,
        )
        loops = (self._heartbeat, self._claim, self._listen, self._report, self._settle, self._sweep, self._host)
        tasks = [asyncio.create_task(loop()) for loop in loops]
        died = asyncio.create_task(self._engine_thread.died.wait())
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, died, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end([*tasks, died, stop])
        for task in done & set(tasks):
            task.result()  # a loop ends by an error of ours only
        with contextlib.suppress(TimeoutError):  # the queue is away: leases run out, and others take over
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._leave()

    async def _leave(self) -> None:
        """Hands everything back: at once after SIGTERM, as a spent delivery if the engine died over it."""
        while not self._ended.empty():
            await self._settle_one(*self._ended.get_nowait())
        if self._engine_thread.died.is_set():
            log.error("the engine died", error=repr(self._engine_thread.error))
            for claim in [claim for claim in self._held.values() if self._on_device(claim)]:
                await self._give_up(
                    claim, f"the engine of worker {self._lane.worker} died: {self._engine_thread.error}"
                )
        await self._persist(lambda: self._lane.leave(self._held.values()))
        for claim in self._held.values():
            self._heat_log.ended(claim, "released")
        log.info("left", worker=self._lane.worker, handed_back=len(self._held))

    async def _announce(self) -> None:
        """Makes the pair known, so that jobs can be submitted and heats be dealt, and renews the leases: again and
        again, since a server may forget all that it was told."""
        await self._persist(lambda: self._lane.leave_tokenizer(self._engine_thread.engine.tokenizer_json))
        state = "busy" if self._held else "ready"
        seconds = INFO_TTL_HEARTBEATS * self.settings.heartbeat_seconds
        lost = await self._persist(lambda: self._lane.heartbeat(list(self._held.values()), seconds, state, self._speed))
        if lost:
            metrics.LEASES_LOST.inc(len(lost))
            log.warning("leases lost; others run these heats too", entries=sorted(lost))

    async def _heartbeat(self) -> None:
        stalled = False
        while True:
            await asyncio.sleep(self.settings.heartbeat_seconds)
            if self._stalled() != stalled:
                stalled = not stalled
                log.warning(
                    "the engine has stalled: no beat" if stalled else "the engine goes on", held=len(self._held)
                )
            if not stalled:
                await self._announce()
            elif self._engine_thread.stalled(self.settings.stall_seconds, HOPELESS):
                self._engine_thread.give_up()

    def _stalled(self) -> bool:
        return self._engine_thread.stalled(self.settings.stall_seconds)

    def _condition(self) -> Condition:
        if self._stop.is_set():
            return Condition.LEAVING
        if not self._warm:
            return Condition.STARTING
        if self._stalled():
            return Condition.STALLED
        return Condition.BUSY if self._held else Condition.READY

    async def _claim(self) -> None:
        while True:
            self._engine_thread.changed.clear()
            if self._alone and not any(map(self._on_device, self._held.values())):
                await self._begin_alone(self._held[self._alone.pop()])
            if (
                self._alone
                or self._engine_thread.room() <= 0
                or self._runs_alone()
                or self._stalled()
                or await self._in_trouble()
            ):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause):
                        await self._engine_thread.changed.wait()
                continue
            for claim in await self._abandoned() or await self._persist(self._next):
                await self._take(claim)

    async def _abandoned(self) -> list[Claim]:
        """A heat of a worker that is gone; asked for once in a while only."""
        if time.monotonic() < self._reclaim_at:
            return []
        claims = await self._persist(lambda: self._lane.reclaim(1, self.settings.lease_seconds))
        metrics.RECLAIMS.inc(len(claims))
        if not claims:
            self._reclaim_at = time.monotonic() + self._pause
        return claims

    async def _next(self) -> list[Claim]:
        return await self._lane.claim(claim_count(self._engine_thread.room()), self._pause)

    async def _in_trouble(self) -> bool:
        """Whether pictures could not be kept: nothing is begun then."""
        trouble = await self._queue.pictures.trouble()
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("heats are claimed again" if trouble is None else "no heats are claimed", reason=trouble)
        return trouble is not None

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):  # the queue is away, or another worker sweeps: later
                await self._queue.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    def _on_device(self, claim: Claim) -> bool:
        """Whether a heat that is held is in the engine: not finals, nor heats that wait to run alone."""
        return not claim.heat.is_finals and claim.key not in self._alone

    def _runs_alone(self) -> bool:
        return any(
            delivery_action(claim.deliveries, self.settings.max_deliveries) is not DeliveryAction.RUN
            for claim in self._held.values()
            if not claim.heat.is_finals
        )

    async def _take(self, claim: Claim) -> None:
        if claim.key in self._held:
            # Our own lease had run out, while the queue was away, say: that is not one delivery more.
            claim = replace(claim, deliveries=self._held[claim.key].deliveries)
            self._held[claim.key] = claim
            await self._count(claim)
            return
        if claim.heat.is_finals:
            self._heat_log.claimed(claim)
            self._held[claim.key] = claim
            self._finals.put_nowait(claim)
            return
        if claim.entry.job in self._over:  # the job's end was heard of before the reply to this claim
            await self._persist(lambda: self._lane.fail(claim, "released"))
            return
        self._heat_log.claimed(claim)
        match delivery_action(claim.deliveries, self.settings.max_deliveries):
            case DeliveryAction.RUN:
                self._held[claim.key] = claim
                self._engine_thread.admit(claim.heat)
            case DeliveryAction.ISOLATE:
                self._held[claim.key] = claim
                self._alone.append(claim.key)
                await self._count(claim)
            case DeliveryAction.DEAD_LETTER:
                reason = (
                    f"candidates {claim.heat.first} to {claim.heat.candidates[-1]} were tried "
                    f"{claim.deliveries - 1} times, and each time their worker died or stalled"
                )
                await self._persist(lambda: self._lane.fail(claim, "dead_lettered", reason))
                self._heat_log.ended(claim, "dead_lettered", reason=reason)

    async def _begin_alone(self, claim: Claim) -> None:
        await self._count(claim)
        if claim.entry.job not in self._over:
            self._engine_thread.admit(claim.heat)

    async def _host(self) -> None:
        """Plays finals beside the engine, those of several jobs at once."""
        async with asyncio.TaskGroup() as group:
            while True:
                claim = await self._finals.get()
                if claim.key in self._held:
                    self._playing[claim.key] = group.create_task(self._play(claim))

    async def _play(self, claim: Claim) -> None:
        try:
            self._ended.put_nowait((claim, await self._played(claim)))
        finally:
            self._playing.pop(claim.key, None)

    async def _played(self, claim: Claim) -> FinalsOutcome | str:
        """What finals came to, whatever happens; "" for another worker to play them."""
        if delivery_action(claim.deliveries, self.settings.max_deliveries) is not DeliveryAction.RUN:
            return not_played("", f"they were tried {claim.deliveries - 1} times, and each time their worker died")
        if self._vision is None:  # jobs with finals are accepted while another worker of the pair has a judge
            cards = await self._persist(self._queue.cards)
            if any(card.pairwise_judge is not None and card.revisions == self._lane.card.revisions for card in cards):
                await asyncio.sleep(FINALS_PAUSE)
                return ""
            return not_played("", "no worker has a pairwise judge any more")
        try:
            meet, pictures = await self._persist(lambda: self._lane.promoted(claim.heat.job))
            return await play(self._vision, claim.heat.job, meet, pictures, partial(self._tell, claim))
        except BestOfNError as error:  # a picture is gone; of a job that has ended meanwhile, this is filed too late
            return not_played("", error.detail)

    async def _tell(self, claim: Claim, meeting: FinalsState) -> None:
        claim = self._held.get(claim.key, claim)
        if not await self._persist(lambda: self._lane.tell_finals(claim, meeting)):
            self._drop_finals(claim.entry.job)  # nobody waits for them, or another worker has taken them over

    async def _count(self, claim: Claim) -> None:
        """Counts a delivery; one of a heat that has yet to run alone counts when it does, for only then is a death of
        this worker its fault."""
        delivered = claim.deliveries - (claim.key in self._alone)
        await self._persist(lambda: self._lane.count(claim, delivered))

    async def _listen(self) -> None:
        """Hears of jobs that have ended early, so that the engine drops them before its next tick."""
        channel = self._queue.keys("control")
        while True:
            try:
                async with self._queue.redis.pubsub() as control:
                    await control.subscribe(channel)
                    while True:
                        message = await control.get_message(ignore_subscribe_messages=True, timeout=5.0)
                        if message is not None:
                            job = message["data"].decode()
                            self._drop(job)
                            self._drop_finals(job)
            except RedisError as error:
                if not away(error):
                    raise
                await asyncio.sleep(LAST_RETRY_SECONDS / 4)  # meanwhile reports tell which jobs have ended

    def _drop_finals(self, job: str) -> None:
        for claim in [claim for key, claim in self._held.items() if key[0] == job and claim.heat.is_finals]:
            if claim.key in self._playing:
                self._playing[claim.key].cancel()
            self._ended.put_nowait((claim, ""))

    def _drop(self, job: str) -> None:
        """Drops a job's heats but for its finals, for which it may be that it wants no more candidates."""
        self._over[job] = None
        if len(self._over) > OVER_KEPT:
            del self._over[next(iter(self._over))]
        keys = [key for key, claim in self._held.items() if key[0] == job and not claim.heat.is_finals]
        if not keys:
            return
        self._engine_thread.cancel(job)
        self._reports.drop(job)
        for key in keys:
            claim = self._held[key]
            if key in self._alone:
                self._alone.remove(key)
            self._ended.put_nowait((claim, ""))

    def _on_events(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            match event:
                case Stepped(job, heat, steps, forwards):
                    if (job, heat) in self._held:
                        self._reports.step(job, heat, steps, forwards)
                case Judged(job, heat, candidate, thumbnail):
                    if (job, heat) in self._held:
                        self._heat_log.judged(job, heat, candidate)
                        self._reports.judge(job, heat, Judgement(candidate, thumbnail))
                case HeatFinished(job, outcome):
                    self._speed = speed_after(self._speed, outcome.usage)
                    if (job, outcome.heat) in self._held:
                        self._ended.put_nowait((self._held[job, outcome.heat], outcome))
                case HeatFailed(job, heat, reason):
                    if (job, heat) in self._held:
                        self._ended.put_nowait((self._held[job, heat], reason))

    async def _report(self) -> None:
        while True:
            await self._reports.wait()
            for job in self._reports.jobs():
                await self._publish(job)
            await asyncio.sleep(REPORT_SECONDS)

    async def _publish(self, job: str) -> None:
        """Tells what is new of a job, one call after the other: a heat is completed only once all of it is told."""
        async with self._publishing:
            progress, judgements = self._reports.take(job)
            if not (progress or judgements):
                return
            try:
                wanted = await self._persist(lambda: self._lane.report(job, progress, judgements))
            except asyncio.CancelledError:
                self._reports.put_back(job, progress, judgements)
                raise
            if not wanted:
                self._drop(job)

    async def _settle(self) -> None:
        while True:
            claim, result = await self._ended.get()
            try:
                await self._settle_one(claim, result)
            except asyncio.CancelledError:
                self._ended.put_nowait((claim, result))
                raise

    async def _settle_one(self, claim: Claim, result: HeatOutcome | FinalsOutcome | str) -> None:
        if claim.key not in self._held:
            return
        claim = self._held[claim.key]
        if isinstance(result, HeatOutcome):
            await self._publish(claim.entry.job)
            try:
                first = await self._persist(lambda: self._lane.complete(claim, result))
            except NotKept as error:
                await self._give_up(claim, str(error), final=error.full)
            else:
                self._heat_log.ended(claim, "completed" if first else "duplicate", result)
        elif isinstance(result, FinalsOutcome):
            first = await self._persist(lambda: self._lane.complete_finals(claim, result))
            self._heat_log.ended(claim, "completed" if first else "duplicate")
        elif result:
            await self._give_up(claim, result)
        else:
            await self._persist(lambda: self._lane.fail(claim, "released"))
            self._heat_log.ended(claim, "released")
        self._held.pop(claim.key, None)
        self._reports.forget(*claim.key)
        self._engine_thread.changed.set()

    async def _give_up(self, claim: Claim, reason: str, *, final: bool = False) -> None:
        last = final or delivery_action(claim.deliveries, self.settings.max_deliveries) is not DeliveryAction.RUN
        outcome: HeatEnding = "dead_lettered" if last else "retried"
        self._reports.forget(*claim.key)
        await self._persist(lambda: self._lane.fail(claim, outcome, reason))
        self._heat_log.ended(claim, outcome, reason=reason)
        self._held.pop(claim.key, None)

    async def _first(self, work: Awaitable[None]) -> bool:
        """Whether `work` was done before the worker was told to stop."""
        task, stop = asyncio.ensure_future(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        return False

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Tries until the queue's server answers; a group that the server has lost is made again."""
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                return await call()
            except RedisError as error:
                if away(error):
                    if pause >= LAST_RETRY_SECONDS:
                        log.warning("the queue is away", error=str(error))
                elif isinstance(error, ResponseError) and "NOGROUP" in str(error):
                    await self._announce()
                else:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_SECONDS)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels tasks until they have ended: `wait_for` of Python 3.11, in which redis-py sends, can lose a cancel."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
