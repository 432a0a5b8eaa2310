"""Workers that are killed, stopped, told to leave and frozen: nothing is lost, and the result stays the same."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.results import assemble
from bestofn.service.core.scheduling import Backlog
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import DIES, FAILS, HANGS, KILLS, FakeEngine
from bestofn.service.engine.protocol import EngineEvent
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.embedded_server import LocalServer
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.local import run_local
from bestofn.service.worker.worker import Worker
from tests.waiting import PATIENCE, events_of

MakeSpec = Callable[..., JobSpec]
Start = Callable[..., "subprocess.Popen[bytes]"]

# The queue's contract is tested over both servers; most of these tests are about processes, and start many.
embedded = pytest.mark.parametrize("server_program", ["valkey"], indirect=True)

PROGRAM = """
import sys
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.core.settings import Settings
from bestofn.service.worker.worker import run_worker
settings = Settings.model_validate_json(sys.argv[1])
sys.exit(run_worker(settings, lambda: FakeEngine(slots=4, step_seconds=float(sys.argv[2]))))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts worker processes, and ends those that are left."""
    processes: list[subprocess.Popen[bytes]] = []

    def worker(settings: Settings, step_seconds: float = 0.02) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-c", PROGRAM, settings.model_dump_json(), str(step_seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return processes[-1]

    yield worker
    for process in processes:
        process.kill()
        process.wait()


@asynccontextmanager
async def inside(settings: Settings, engine: FakeEngine) -> Any:
    """A worker in this process; its SIGTERM is the end of the block."""
    worker = Worker(settings, lambda: engine)
    task = asyncio.create_task(worker.run())
    yield task
    if not task.done():
        os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0


async def ready(queue: Queue, workers: int) -> None:
    while len(await queue.workers()) < workers:
        await asyncio.sleep(0.02)


async def ended(queue: Queue, job: str) -> JobStatus:
    async for _ in events_of(queue, job):
        pass
    return (await queue.record(job)).status


async def heats_done(queue: Queue, job: str, number: int) -> None:
    async for event in events_of(queue, job):
        number -= event.type == "heat"
        if number == 0:
            return


async def answer(queue: Queue, job: str) -> tuple[object, ...]:
    """All of a result that must not depend on who worked."""
    record = await queue.record(job)
    result = assemble(record.spec, record.status, record.outcomes)
    images = [(image.seed, image.verdict, await queue.image(job, image.candidate)) for image in result.images]
    return images, result.bracket, result.candidates, result.status


async def test_kill_9_of_one_of_two_workers_changes_nothing(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    queue = await Queue.connect(settings)
    one, _ = start(settings), start(settings)
    await ready(queue, 2)
    undisturbed, disturbed = (make_spec(num_samples=48, top_k=3) for _ in range(2))
    await queue.submit(undisturbed, cost=1)
    assert await ended(queue, undisturbed.id) is JobStatus.SUCCEEDED
    await queue.submit(disturbed, cost=1)
    await heats_done(queue, disturbed.id, 4)
    one.send_signal(signal.SIGKILL)
    assert await ended(queue, disturbed.id) is JobStatus.SUCCEEDED
    assert await answer(queue, disturbed.id) == await answer(queue, undisturbed.id)
    events = [event.data["heat"] async for event in events_of(queue, disturbed.id) if event.type == "heat"]
    assert sorted(events) == list(range(12))
    assert (await queue.backlog()).candidates == 0
    await queue.aclose()


@embedded
async def test_early_stop_with_a_killed_worker_ends_as_in_one_process(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    queue = await Queue.connect(settings)
    stop = {"confidence": 1 - 1e-7, "patience": 500}
    spec = make_spec(num_samples=400, heat_size=16, top_k=3, seed=29, stop=stop)
    here = run_local(spec, FakeEngine(slots=4))
    assert (here.result.stopped, len(here.result.candidates)) == ("confident", 96)

    async def end(workers: int, *, kill: bool) -> None:
        job = spec.model_copy(update={"id": f"with-{workers}"})
        await queue.submit(job, cost=1)
        if kill:
            await heats_done(queue, job.id, 5)
            killed.send_signal(signal.SIGKILL)
        assert await ended(queue, job.id) is JobStatus.SUCCEEDED
        record = await queue.record(job.id)
        result = assemble(record.spec, record.status, record.outcomes, stopped=record.stopped)
        same = {"images", "bracket", "candidates", "complete", "stopped", "confidence", "calibrated", "warnings"}
        addresses = {"images": {"__all__": {"url"}}}
        told, expected = (one.model_dump(include=same, exclude=addresses) for one in (result, here.result))
        assert told == expected
        assert (result.usage.candidates, result.usage.judge_forwards) == (96, 96)
        assert [await queue.image(job.id, i.candidate) for i in result.images] == list(here.images.values())
        assert await queue.backlog() == Backlog(image_bytes=(await queue.backlog()).image_bytes)

    killed = start(settings)
    await ready(queue, 1)
    await end(1, kill=False)
    start(settings), start(settings)
    await ready(queue, 3)
    await end(3, kill=True)
    dealt = queue.keys("dispatched", "*", "*")
    async with asyncio.timeout(PATIENCE):  # what ran ahead is dropped, and nothing of it stays dealt
        while any([int(await queue.redis.get(key)) for key in await queue.redis.keys(dealt)]):
            await asyncio.sleep(0.05)
    await queue.aclose()


@embedded
async def test_a_stopped_worker_is_overtaken_and_its_late_result_ignored(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    queue = await Queue.connect(settings)
    one = start(settings, 0.1)
    await ready(queue, 1)
    spec = make_spec(num_samples=8)
    await queue.submit(spec, cost=1)
    while (await queue.record(spec.id)).status is JobStatus.QUEUED:
        await asyncio.sleep(0.01)
    one.send_signal(signal.SIGSTOP)
    start(settings)
    assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
    before = await answer(queue, spec.id)
    one.send_signal(signal.SIGCONT)
    await ready(queue, 2)
    await asyncio.sleep(0.5)
    assert await answer(queue, spec.id) == before
    assert [event.type async for event in events_of(queue, spec.id)].count("heat") == 2
    one.terminate()
    assert await asyncio.to_thread(one.wait) == 0
    await queue.aclose()


@embedded
async def test_sigterm_hands_heats_back_at_once(settings: Settings, make_spec: MakeSpec, start: Start) -> None:
    patient = settings.model_copy(update={"lease_seconds": 2 * PATIENCE})
    queue = await Queue.connect(patient)
    slow = start(patient, 2.0)
    await ready(queue, 1)
    spec = make_spec(num_samples=16)
    await queue.submit(spec, cost=1)
    while (await queue.record(spec.id)).status is JobStatus.QUEUED:
        await asyncio.sleep(0.01)
    start(patient)
    await ready(queue, 2)
    slow.terminate()
    assert await asyncio.wait_for(ended(queue, spec.id), PATIENCE) is JobStatus.SUCCEEDED
    assert await asyncio.to_thread(slow.wait, PATIENCE) == 0
    async with asyncio.timeout(PATIENCE):
        while len(await queue.workers()) != 1:
            await asyncio.sleep(0.02)
    await queue.aclose()


@embedded
async def test_a_heat_that_fails_everywhere_ends_its_job_and_no_other(settings: Settings, make_spec: MakeSpec) -> None:
    queue = await Queue.connect(settings)
    async with inside(settings, FakeEngine(slots=8, step_seconds=0.01)):
        await ready(queue, 1)
        bad, good = make_spec(prompt=FAILS), make_spec(num_samples=64)
        await queue.submit(bad, cost=1)
        await queue.submit(good, cost=1)
        assert await ended(queue, bad.id) is JobStatus.FAILED
        assert await ended(queue, good.id) is JobStatus.SUCCEEDED
        assert (await queue.record(bad.id)).error == "the prompt asked for it"
        [(_, letter)] = await queue.redis.xrange(queue.keys("dead_letters"))
        assert (letter[b"job"].decode(), letter[b"deliveries"]) == (bad.id, b"4")
    await queue.aclose()


@embedded
async def test_a_heat_that_kills_its_worker_four_times_is_dead(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    quick = settings.model_copy(update={"lease_seconds": 1.5, "heartbeat_seconds": 0.3})
    queue = await Queue.connect(quick)
    crew = [start(quick) for _ in range(2)]
    await ready(queue, 2)
    bad, good = make_spec(prompt=KILLS, num_samples=4), make_spec(num_samples=16)
    await queue.submit(bad, cost=1)
    await queue.submit(good, cost=1)
    deaths = 0
    end = asyncio.create_task(ended(queue, bad.id))
    while not end.done():
        for place, process in enumerate(crew):
            if process.poll() is not None:
                deaths += 1
                crew[place] = start(quick)
        await asyncio.sleep(0.05)
    assert await end is JobStatus.FAILED
    assert deaths == 4
    assert "were tried 4 times, and each time their worker died or stalled" in str((await queue.record(bad.id)).error)
    [(_, letter)] = await queue.redis.xrange(queue.keys("dead_letters"))
    assert letter[b"deliveries"] == b"4"
    assert await ended(queue, good.id) is JobStatus.SUCCEEDED
    await queue.aclose()


@embedded
async def test_a_dead_engine_ends_its_worker_with_1(
    settings: Settings, make_spec: MakeSpec, start: Start, open_lane: Callable[..., Awaitable[QueueConsumer]]
) -> None:
    queue = await Queue.connect(settings)
    process = start(settings)
    await ready(queue, 1)
    await queue.submit(make_spec(prompt=DIES, num_samples=4), cost=1)
    assert await asyncio.to_thread(process.wait, PATIENCE) == 1
    [claim] = await (await open_lane(queue)).claim(4, 0)
    assert claim.deliveries == 2
    await queue.aclose()


class _Freezes(FakeEngine):
    """Gets nowhere; from `freeze` on a tick lasts until it is released."""

    def __init__(self, freeze: threading.Event, release: threading.Event) -> None:
        super().__init__(slots=16)
        self.freeze, self.release = freeze, release

    def tick(self) -> list[EngineEvent]:
        if not self.freeze.is_set():
            time.sleep(0.01)
            return []
        self.release.wait()
        return super().tick()


@embedded
def test_a_frozen_engine_loses_its_heats(settings: Settings, make_spec: MakeSpec, start: Start) -> None:
    hasty = settings.model_copy(update={"stall_seconds": 1.0})
    freeze, release = threading.Event(), threading.Event()

    async def run() -> None:
        queue = await Queue.connect(hasty)
        async with inside(hasty, _Freezes(freeze, release)):
            await ready(queue, 1)
            spec = make_spec(num_samples=4)
            await queue.submit(spec, cost=1)
            while (await queue.record(spec.id)).status is JobStatus.QUEUED:
                await asyncio.sleep(0.01)
            start(settings)
            await ready(queue, 2)  # which takes longer than a stalled engine is waited for
            freeze.set()
            assert await asyncio.wait_for(ended(queue, spec.id), PATIENCE) is JobStatus.SUCCEEDED
            assert not release.is_set()
            release.set()
        await queue.aclose()

    try:
        asyncio.run(run())
    finally:
        release.set()


class _Gated(FakeEngine):
    """Makes as many ticks as it was let to."""

    def __init__(self) -> None:
        super().__init__(slots=4)
        self.gate = threading.Semaphore(0)

    def tick(self) -> list[EngineEvent]:
        self.gate.acquire(timeout=PATIENCE)
        return super().tick()


class _Notes(_Gated):
    """Notes what came of the ticks that it began after a cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.since_cancel: list[Sequence[EngineEvent]] = []
        self.canceled = False

    def cancel(self, job: str) -> None:
        super().cancel(job)
        self.canceled = True

    def tick(self) -> list[EngineEvent]:
        canceled = self.canceled
        events = super().tick()
        if canceled:
            self.since_cancel.append(events)
        return events


@embedded
async def test_cancel_reaches_the_engine_before_its_next_tick(settings: Settings, make_spec: MakeSpec) -> None:
    engine = _Notes()
    # Neither a beat nor a report of progress, of which there is none, is what brings the cancel.
    beats = {"lease_seconds": 4 * PATIENCE, "heartbeat_seconds": 2 * PATIENCE}
    seldom = settings.model_copy(update=beats)
    queue = await Queue.connect(settings)
    async with inside(seldom, engine):
        await ready(queue, 1)
        spec = make_spec(num_samples=64)
        await queue.submit(spec, cost=1)
        engine.gate.release(4)
        await heats_done(queue, spec.id, 2)
        await queue.cancel(spec.id)
        async with asyncio.timeout(PATIENCE):
            while not engine.canceled:
                await asyncio.sleep(0.01)
            engine.gate.release(100)
            while engine.busy:
                await asyncio.sleep(0.01)
        assert engine.since_cancel in ([], [[]])
        after = make_spec()
        await queue.submit(after, cost=1)
        assert await ended(queue, after.id) is JobStatus.SUCCEEDED
    await queue.aclose()


@asynccontextmanager
async def begun(
    settings: Settings, start: Start, spec: JobSpec, heats: int, step_seconds: float = 0.05
) -> AsyncIterator[tuple[LocalServer, Queue, "subprocess.Popen[bytes]"]]:
    """A queue server of its own, whose one worker has done so many heats of a job."""
    with LocalServer(settings.data_dir) as server:
        own = settings.model_copy(update={"redis_url": server.url})
        queue = await Queue.connect(own)
        worker = start(own, step_seconds)
        await ready(queue, 1)
        await queue.submit(spec, cost=1)
        await heats_done(queue, spec.id, heats)
        yield server, queue, worker
        await queue.aclose()


@embedded
async def test_workers_outlive_a_killed_server(settings: Settings, make_spec: MakeSpec, start: Start) -> None:
    spec = make_spec(num_samples=64)
    async with begun(settings, start, spec, 2) as (server, queue, worker):
        os.kill((await queue.redis.info("server"))["process_id"], signal.SIGKILL)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.restart)
        assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
        assert len((await queue.record(spec.id)).outcomes) == 16
        assert worker.poll() is None


@embedded
@pytest.mark.parametrize("leaves", [False, True])
def test_candidates_are_reported_before_their_heat_after_any_retry(
    settings: Settings, make_spec: MakeSpec, leaves: bool
) -> None:
    engine = _Gated()

    async def run(server: LocalServer) -> None:
        own = settings.model_copy(update={"redis_url": server.url})
        queue = await Queue.connect(own)
        async with inside(own, engine):
            await ready(queue, 1)
            spec = make_spec(num_samples=8, heat_size=8, num_inference_steps=1, thumbnails=True)
            await queue.submit(spec, cost=1)
            while (await queue.record(spec.id)).status is JobStatus.QUEUED:
                await asyncio.sleep(0.01)
            os.kill((await queue.redis.info("server"))["process_id"], signal.SIGKILL)
            engine.gate.release()  # four are judged, which is tried to be told less and less often
            await asyncio.sleep(1.0)
            engine.gate.release()  # the heat is done
            await asyncio.sleep(0.1)
            if leaves:
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.to_thread(server.restart)
            assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
            types = [event.type async for event in events_of(queue, spec.id)]
            assert types.count("candidate") == 8
            assert types[-2:] == ["heat", "result"]
            for candidate in range(8):
                assert await queue.thumbnail(spec.id, candidate)
        await queue.aclose()

    with LocalServer(settings.data_dir) as server:
        asyncio.run(run(server))


@embedded
async def test_queue_that_lost_its_data_gets_all_again_from_a_full_worker(
    settings: Settings, make_spec: MakeSpec
) -> None:
    engine = _Gated()
    queue = await Queue.connect(settings)
    async with inside(settings, engine):
        await ready(queue, 1)
        await queue.submit(make_spec(num_samples=16, heat_size=16), cost=1)
        while "busy" not in [info.state for info in await queue.workers()]:
            await asyncio.sleep(0.01)
        await queue.redis.delete(*await queue.redis.keys(f"{settings.namespace}:*"))
        async with asyncio.timeout(PATIENCE):
            await ready(queue, 1)
            for _ in range(20):
                engine.gate.release()
            spec = make_spec()
            await queue.submit(spec, cost=1)
            assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
            assert await queue.tokenizer(engine.model_info.tokenizer_sha256) == engine.tokenizer_files[0]
    await queue.aclose()


@embedded
async def test_a_heat_that_waits_to_run_alone_is_not_to_blame_for_the_death_of_its_worker(
    settings: Settings, make_spec: MakeSpec, start: Start, open_lane: Callable[..., Awaitable[QueueConsumer]]
) -> None:
    quick = settings.model_copy(update={"lease_seconds": 1.5, "heartbeat_seconds": 0.3})
    queue = await Queue.connect(quick)
    good, bad = make_spec(num_samples=4), make_spec(prompt=KILLS, num_samples=4)
    lane = await open_lane(queue)
    await queue.submit(good, cost=1)
    for _ in range(quick.max_deliveries):
        [claim] = await lane.claim(1, 0)
        await lane.give_back(claim, "retried")
    await queue.submit(bad, cost=1)
    [claim] = await lane.claim(1, 0)  # the good one: the bad one is first now
    await lane.give_back(claim, "released")
    await lane.leave([])
    worker = start(quick, 0.5)  # takes the second heat before its first tick, which kills it, is over
    end = asyncio.create_task(ended(queue, bad.id))
    while not end.done():
        if worker.poll() is not None:
            worker = start(quick, 0.5)
        await asyncio.sleep(0.05)
    assert await end is JobStatus.FAILED
    assert await ended(queue, good.id) is JobStatus.SUCCEEDED
    await queue.aclose()


@embedded
async def test_a_worker_whose_engine_hangs_ends_and_hands_its_heats_on(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    hasty = settings.model_copy(update={"stall_seconds": 0.2})
    queue = await Queue.connect(hasty)
    worker = start(hasty, 0.02)
    await ready(queue, 1)
    spec = make_spec(prompt=HANGS, num_samples=4)
    await queue.submit(spec, cost=1)
    assert await asyncio.to_thread(worker.wait, PATIENCE) == 1
    assert (await queue.record(spec.id)).status is JobStatus.RUNNING
    await queue.cancel(spec.id)
    await queue.aclose()


@embedded
async def test_a_server_that_takes_no_writes_is_waited_for(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    spec = make_spec(num_samples=32)
    async with begun(settings, start, spec, 2) as (_, queue, worker):
        await queue.redis.config_set("min-replicas-to-write", 1)  # as a full disk: what is written is refused
        with pytest.raises(ResponseError, match="NOREPLICAS"):
            await queue.submit(make_spec(), cost=1)
        await asyncio.sleep(0.5)
        await queue.redis.config_set("min-replicas-to-write", 0)
        assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
        assert worker.poll() is None


@embedded
async def test_a_worker_that_starts_over_a_full_server_does_what_is_left(
    settings: Settings, make_spec: MakeSpec, start: Start
) -> None:
    spec = make_spec(num_samples=16)
    async with begun(settings, start, spec, 1, 0.1) as (_, queue, first):
        first.kill()
        await queue.redis.config_set("maxmemory", (await queue.redis.info("memory"))["used_memory"] // 2)
        start(queue.settings, 0.02)
        assert await ended(queue, spec.id) is JobStatus.SUCCEEDED
