"""Completion of heats: engine events become progress reports and results, and the queue records both."""

import asyncio
from collections.abc import Sequence

from bestofn.service.core.errors import JobUnreadable
from bestofn.service.core.scheduling import DeliveryAction
from bestofn.service.engine.protocol import EngineEvent, HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.queue.claims import Claim, Judgement
from bestofn.service.queue.image_store import ImageNotStored
from bestofn.service.worker.context import WorkerContext
from bestofn.service.worker.heat_log import HeatEnding, judged, log_end
from bestofn.service.worker.held_heats import (
    Completed,
    Failed,
    FinalsCompleted,
    HeatKey,
    HeatResult,
    Released,
)
from bestofn.service.worker.job_control import JobControl
from bestofn.service.worker.progress_buffer import speed_after

REPORT_SECONDS = 0.25  # progress is published this often


class Completion:
    """Publishes progress and records results, one heat after the other."""

    def __init__(self, context: WorkerContext, control: JobControl) -> None:
        self._context = context
        self._control = control
        self._publishing = asyncio.Lock()

    def on_events(self, events: Sequence[EngineEvent]) -> None:
        """Note the events of one tick. Events of heats that are not held any more are ignored."""
        context = self._context
        for event in events:
            match event:
                case Stepped(job, heat, steps, forwards):
                    if context.held.get((job, heat)) is not None:
                        context.progress.step(job, heat, steps, forwards)
                case Judged(job, heat, candidate, thumbnail):
                    if (held := context.held.get((job, heat))) is not None:
                        judged(held, candidate)
                        context.progress.judge(job, heat, Judgement(candidate, thumbnail))
                case HeatFinished(job, outcome):
                    context.tflops_per_second = speed_after(context.tflops_per_second, outcome.usage)
                    context.end((job, outcome.heat), Completed(outcome))
                case HeatFailed(job, heat, reason, final):
                    context.end((job, heat), Failed(reason, final))

    async def publish_loop(self) -> None:
        """Publish progress every `REPORT_SECONDS` while there is any."""
        progress = self._context.progress
        while True:
            await progress.wait()
            for job in progress.jobs():
                await self._publish(job)
            await asyncio.sleep(REPORT_SECONDS)

    async def run(self) -> None:
        """Record the results of ended heats in the queue."""
        ended = self._context.ended
        while True:
            key = await ended.get()
            try:
                await self._record(key)
            except asyncio.CancelledError:
                ended.put_nowait(key)
                raise

    async def drain(self) -> None:
        """Record all results that are known."""
        while not self._context.ended.empty():
            await self._record(self._context.ended.get_nowait())

    async def fail(self, claim: Claim, failure: Failed) -> None:
        """Return a failed heat to the queue: for another attempt, or as a dead letter that fails its job."""
        context = self._context
        last = failure.final or context.held.action(claim) is not DeliveryAction.RUN
        ending: HeatEnding = "dead_lettered" if last else "retried"
        context.progress.forget(*claim.key)
        await context.call(lambda: context.consumer.give_back(claim, ending, failure.reason))
        log_end(context.held, claim, ending, reason=failure.reason)
        context.held.drop(claim.key)

    async def _publish(self, job: str) -> None:
        """Publish what is new of a job. Calls follow each other, so that a heat completes after its last report."""
        context = self._context
        async with self._publishing:
            progress, judgements = context.progress.take(job)
            if not (progress or judgements):
                return
            try:
                wanted = await context.call(lambda: context.consumer.report(job, progress, judgements))
            except asyncio.CancelledError:
                context.progress.put_back(job, progress, judgements)
                raise
            if not wanted:
                self._control.drop(job)

    async def _record(self, key: HeatKey) -> None:
        context = self._context
        held = context.held.get(key)
        if held is None or held.result is None:
            return
        try:
            await self._record_result(held.claim, held.result)
        except JobUnreadable as error:
            await self.fail(held.claim, Failed(error.detail, final=True))
        context.held.drop(key)
        context.progress.forget(*key)
        context.engine_thread.changed.set()

    async def _record_result(self, claim: Claim, result: HeatResult) -> None:
        context = self._context
        match result:
            case Completed(outcome):
                await self._publish(claim.entry.job)
                try:
                    first = await context.call(lambda: context.consumer.complete(claim, outcome))
                except ImageNotStored as error:
                    await self.fail(claim, Failed(str(error), error.full))
                else:
                    log_end(context.held, claim, "completed" if first else "duplicate", outcome)
            case FinalsCompleted(finals):
                first = await context.call(lambda: context.consumer.complete_finals(claim, finals))
                log_end(context.held, claim, "completed" if first else "duplicate")
            case Failed() as failure:
                await self.fail(claim, failure)
            case Released():
                await context.call(lambda: context.consumer.give_back(claim, "released"))
                log_end(context.held, claim, "released")
