"""Finals of jobs: the pairwise judge's knockouts, which run while the engine denoises."""

import asyncio
from functools import partial

from bestofn.service.core.errors import BestOfNError
from bestofn.service.core.finals import not_played
from bestofn.service.core.scheduling import DeliveryAction
from bestofn.service.core.schemas import FinalsProgress
from bestofn.service.pairwise.finals_runner import play
from bestofn.service.queue.claims import Claim
from bestofn.service.worker.context import WorkerContext
from bestofn.service.worker.held_heats import FinalsCompleted, HeatKey, HeatResult, Released

NO_JUDGE_PAUSE_SECONDS = 0.5  # before finals go back to the queue for a worker with a pairwise judge


class FinalsPlayer:
    """Runs the knockouts of several jobs at once, each in a task."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._waiting: asyncio.Queue[Claim] = asyncio.Queue()
        self._tasks: dict[HeatKey, asyncio.Task[None]] = {}

    def start(self, claim: Claim) -> None:
        """Schedule the knockout of a held claim."""
        self._waiting.put_nowait(claim)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                claim = await self._waiting.get()
                if self._context.held.get(claim.key) is not None:
                    self._tasks[claim.key] = group.create_task(self._play(claim))

    def drop(self, job: str) -> None:
        """End the finals of a job that has ended, or that another worker has taken over."""
        for held in self._context.held.of_job(job, finals=True):
            task = self._tasks.get(held.claim.key)
            if task is not None:
                task.cancel()
            self._context.end(held.claim.key, Released())

    async def _play(self, claim: Claim) -> None:
        try:
            self._context.end(claim.key, await self._result(claim))
        finally:
            self._tasks.pop(claim.key, None)

    async def _result(self, claim: Claim) -> HeatResult:
        context = self._context
        if context.held.action(claim) is not DeliveryAction.RUN:
            died = f"they were tried {claim.deliveries - 1} times, and each time their worker died"
            return FinalsCompleted(not_played("", died))
        if context.vision is None:
            return await self._without_judge()
        try:
            entrants, images = await context.call(lambda: context.consumer.finals_entrants(claim.heat.job))
            publish = partial(self._publish, claim)
            return FinalsCompleted(await play(context.vision, claim.heat.job, entrants, images, publish))
        except BestOfNError as error:  # an image has expired; if its job has ended, the queue ignores this result
            return FinalsCompleted(not_played("", error.detail))

    async def _without_judge(self) -> HeatResult:
        """The job was accepted while another worker of this deployment had a pairwise judge."""
        context = self._context
        workers = await context.call(context.queue.workers)
        own = context.consumer.info.revisions
        if any(worker.pairwise_judge is not None and worker.revisions == own for worker in workers):
            await asyncio.sleep(NO_JUDGE_PAUSE_SECONDS)
            return Released()
        return FinalsCompleted(not_played("", "no worker has a pairwise judge any more"))

    async def _publish(self, claim: Claim, state: FinalsProgress) -> None:
        held = self._context.held.get(claim.key)
        current = claim if held is None else held.claim
        if not await self._context.call(lambda: self._context.consumer.publish_finals(current, state)):
            self.drop(claim.entry.job)
