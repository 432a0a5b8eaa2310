"""Waiting for a job's end, for as long as the caller, the server and patience last."""

import asyncio
import math
from enum import Enum

from fastapi import Request

from bestofn.service.api.dependencies import Context
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.job_events import wait_for_end


class Ending(Enum):
    """Why a wait was over."""

    ENDED = "the job has ended"
    TIME = "the time was up, or the server stops"
    HUNG_UP = "the caller has gone"


async def wait(context: Context, request: Request, job_id: str, seconds: float = math.inf) -> Ending:
    """Wait until the job has ended, at most `seconds`.

    All waits of a process share one blocking read, so hundreds of callers may wait together.
    """
    if seconds <= 0:
        return Ending.TIME
    ended = asyncio.create_task(wait_for_end(context.queue, job_id))
    hung_up = asyncio.create_task(_hung_up(request))
    stopping = asyncio.create_task(context.stopping.wait())
    tasks = {ended, hung_up, stopping}
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=None if seconds == math.inf else seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        await end_tasks(tasks)
    if ended in done:
        ended.result()  # raises what went wrong: the queue was lost, say
        return Ending.ENDED
    return Ending.HUNG_UP if hung_up in done else Ending.TIME


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
