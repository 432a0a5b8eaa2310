"""A worker that meets stored text it cannot read: that job fails, and the worker goes on with the next one."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.worker import Worker
from tests.waiting import events_of

MakeSpec = Callable[..., JobSpec]


@pytest.mark.parametrize("field", ["spec", "leaders", "progress"])
async def test_a_worker_outlives_a_job_that_it_cannot_read(settings: Settings, make_spec: MakeSpec, field: str) -> None:
    queue = await Queue.connect(settings)
    worker = Worker(settings, lambda: FakeEngine(slots=4, step_seconds=0.2))
    task = asyncio.create_task(worker.run())
    while not await queue.workers():
        await asyncio.sleep(0.02)
    blocker, bad, good = (make_spec(num_samples=n) for n in (16, 8, 8))
    for spec in (blocker, bad, good):
        await queue.submit(spec, cost=1)
        if spec is bad and field == "progress":
            await queue.redis.hset(queue.keys("progress", bad.id), mapping={"0": "x", "1": "1 2"})
        elif spec is bad:
            await queue.redis.hset(queue.keys("job", bad.id), field, "{")
    ends = {}
    for spec in (blocker, bad, good):
        events = [event.type async for event in events_of(queue, spec.id)]
        assert not task.done()
        ends[spec.id] = events[-1]
    assert ends == {blocker.id: "result", bad.id: "result" if field == "progress" else "failed", good.id: "result"}
    assert (await queue.record(good.id)).status is JobStatus.SUCCEEDED
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0
    await queue.aclose()
