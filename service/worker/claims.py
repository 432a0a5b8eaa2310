"""Claiming heats: new ones, those of workers that died, and those that have to run isolated."""

import asyncio
import contextlib
import time
from dataclasses import replace

import structlog

from bestofn.service.core.scheduling import DeliveryAction, claim_count
from bestofn.service.queue.claims import Claim
from bestofn.service.telemetry import metrics
from bestofn.service.worker.context import WorkerContext
from bestofn.service.worker.finals import FinalsPlayer
from bestofn.service.worker.heat_log import log_end
from bestofn.service.worker.held_heats import HeatState, HeldHeat

log = structlog.get_logger()


class ClaimLoop:
    """Claims heats while the engine has room, and admits them to it."""

    def __init__(self, context: WorkerContext, finals: FinalsPlayer) -> None:
        self._context = context
        self._finals = finals
        self._pause = min(context.settings.heartbeat_seconds, 1.0)  # seconds between two attempts to reclaim
        self._reclaim_at = 0.0
        self._image_trouble: str | None = None

    async def run(self) -> None:
        context = self._context
        changed = context.engine_thread.changed
        while True:
            changed.clear()
            isolated = context.held.next_isolated()
            if isolated is not None:
                await self._start_isolated(isolated)
            if await self._closed():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause):
                        await changed.wait()
                continue
            for claim in await self._reclaimed() or await context.call(
                lambda: context.consumer.claim(claim_count(context.engine_thread.room()), self._pause)
            ):
                await self._take(claim)

    async def _closed(self) -> bool:
        """Whether no heat may be claimed now."""
        context = self._context
        return (
            context.held.isolation
            or context.engine_thread.room() <= 0
            or context.stalled()
            or await self._cannot_store_images()
        )

    async def _reclaimed(self) -> list[Claim]:
        """A heat whose lease has expired, asked for at most once in `_pause` seconds."""
        if time.monotonic() < self._reclaim_at:
            return []
        context = self._context
        claims = await context.call(lambda: context.consumer.reclaim(context.settings.lease_seconds))
        metrics.RECLAIMS.inc(len(claims))
        if not claims:
            self._reclaim_at = time.monotonic() + self._pause
        return claims

    async def _cannot_store_images(self) -> bool:
        trouble = await self._context.call(self._context.queue.images.trouble)
        if trouble != self._image_trouble:
            self._image_trouble = trouble
            log.warning("heats are claimed again" if trouble is None else "no heats are claimed", reason=trouble)
        return trouble is not None

    async def _take(self, claim: Claim) -> None:
        context, held = self._context, self._context.held
        again = held.reclaimed(claim)
        if again is not None:
            await self._set_deliveries(again)
            return
        finals = claim.heat.is_finals
        if not finals and claim.entry.job in context.ended_jobs:
            await context.call(lambda: context.consumer.give_back(claim, "released"))
            return
        if not finals and held.action(claim) is DeliveryAction.DEAD_LETTER:
            await self._dead_letter(replace(claim, deliveries=claim.deliveries - 1))  # this delivery is no attempt
            return
        metrics.DELIVERIES.observe(claim.deliveries)
        state = held.add(claim).state
        if finals:
            self._finals.start(claim)
        elif state is HeatState.RUNNING:
            context.engine_thread.admit(claim.heat)
        else:
            await self._set_deliveries(claim)

    async def _dead_letter(self, claim: Claim) -> None:
        heat = claim.heat
        reason = (
            f"candidates {heat.first} to {heat.candidates[-1]} were tried {claim.deliveries} times, and each time "
            "their worker died or stalled"
        )
        await self._context.call(lambda: self._context.consumer.give_back(claim, "dead_lettered", reason))
        log_end(self._context.held, claim, "dead_lettered", reason=reason)

    async def _start_isolated(self, isolated: HeldHeat) -> None:
        isolated.move(HeatState.RUNNING)
        await self._set_deliveries(isolated.claim)
        if isolated.state is HeatState.RUNNING:  # its job may have ended during the call
            self._context.engine_thread.admit(isolated.claim.heat)

    async def _set_deliveries(self, claim: Claim) -> None:
        """Set the delivery count of a heat. One that waits to run isolated is counted when it starts: only then can it
        be the cause of this worker's death."""
        held = self._context.held.get(claim.key)
        waits = held is not None and held.state is HeatState.WAITING
        deliveries = claim.deliveries - waits
        await self._context.call(lambda: self._context.consumer.set_deliveries(claim, deliveries))
