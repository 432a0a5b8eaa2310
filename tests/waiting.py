"""Waiting for an event, with a limit that only a hang reaches: the speed of the machine decides no test."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from bestofn.service.queue.codec import Event
from bestofn.service.queue.job_events import follow_entries
from bestofn.service.queue.job_queue import Queue

PATIENCE = 300.0  # seconds; less than the `timeout` of a test in pyproject.toml, so that the wait itself fails
# Deadlines in seconds, tried in turn: a slow machine may do too little before the first one.
DEADLINES = (1.0, 8.0, 64.0)

T = TypeVar("T")


def until(look: Callable[[], T]) -> T:
    """Return the first true value of `look`; fail after `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"{found!r} for {PATIENCE:.0f} s"
        time.sleep(0.02)
    return found


async def events_of(queue: Queue, job: str, after: str = "0") -> AsyncGenerator[Event, None]:
    """Events of a job after the one with id `after`, as they come, up to its last one."""
    async with aclosing(follow_entries(queue, job, after)) as batches:
        async for entries in batches:
            for entry in entries:
                yield Event.read(*entry)
