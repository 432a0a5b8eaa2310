"""Heartbeat of a worker: publishes its info and renews its leases, unless its engine has stalled."""

import asyncio

import structlog

from bestofn.service.worker.context import WorkerContext

HOPELESS_FACTOR = 5.0  # an engine that stalls for this many stall times is given up

log = structlog.get_logger()


async def heartbeat_loop(context: WorkerContext) -> None:
    """Announce the worker every `heartbeat_seconds`; not while its engine is stalled, so that its leases expire.

    An engine is given up at its second stalled heartbeat at the earliest. After a pause of the whole process, such as
    SIGSTOP, every engine looks stalled at the first one.
    """
    stalled = False
    while True:
        await asyncio.sleep(context.settings.heartbeat_seconds)
        before, stalled = stalled, context.stalled()
        if stalled != before:
            log.warning(
                "the engine has stalled: no heartbeat" if stalled else "the engine goes on", held=len(context.held)
            )
        if not stalled:
            await context.announce()
        elif before and context.stalled(HOPELESS_FACTOR):
            context.engine_thread.give_up()
