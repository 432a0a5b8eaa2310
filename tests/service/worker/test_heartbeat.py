"""A worker's heartbeat after a pause of the whole process, as SIGSTOP, a paused container or a sleeping host makes."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.protocol import EngineEvent
from bestofn.service.queue.job_queue import Queue
from tests.service.worker.test_worker import ended, inside, ready
from tests.waiting import PATIENCE

pytestmark = pytest.mark.anyio


class Held(FakeEngine):
    """An engine whose first tick with work returns when `go` is set."""

    def __init__(self) -> None:
        super().__init__(slots=4)
        self.go = threading.Event()

    def tick(self) -> list[EngineEvent]:
        assert self.go.wait(PATIENCE)
        return super().tick()


@pytest.mark.parametrize("server_program", ["redis"], indirect=True)
async def test_heartbeat_that_first_sees_a_stall_of_any_length_keeps_the_engine(
    settings: Settings, make_spec: Callable[..., JobSpec]
) -> None:
    """The stall is hopeless at its first heartbeat already; the engine goes on before the second."""
    paused = settings.model_copy(update={"stall_seconds": 0.01, "heartbeat_seconds": 3.0, "lease_seconds": 60.0})
    queue, engine = await Queue.connect(paused), Held()
    with capture_logs() as lines:
        async with inside(paused, engine) as worker:
            await ready(queue, 1)
            spec = make_spec(num_samples=4)
            await queue.submit(spec, cost=1)
            async with asyncio.timeout(PATIENCE):
                while not (any("has stalled" in line["event"] for line in lines) or worker.done()):
                    await asyncio.sleep(0.01)
            given_up = worker.done()
            engine.go.set()
            assert not given_up
            assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
    assert [line["event"] for line in lines if line["log_level"] == "error"] == []
    await queue.aclose()
