"""A queue that is closed at the end of a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bestofn.service.core.settings import Settings
from bestofn.service.queue.job_queue import Queue


@asynccontextmanager
async def opened(settings: Settings, **changes: object) -> AsyncIterator[Queue]:
    """The queue of these settings, with changes."""
    queue = await Queue.connect(settings.model_copy(update=changes))
    try:
        yield queue
    finally:
        await queue.aclose()
