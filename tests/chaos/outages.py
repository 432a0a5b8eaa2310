"""Queue server or API killed, the disk filled, all under load: nothing acknowledged is lost, and clients go on."""

import asyncio
import collections
import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx
from figures import Figure, at_most, exactly, told
from place import PATIENCE_SECONDS, Api, Place, at_rest, place, servers

import bestofn
from bestofn.service.client.events import JobEvent, SnapshotEvent

CLIENTS = 40
RETURN_SECONDS = 5.0
STREAMS = 100
DISK_MEGABYTES = 512


@dataclass
class _Load:
    """Clients that submit one small job after the other, each with a key of its own, until they are told to stop."""

    api: Api
    acknowledged: dict[str, str] = field(default_factory=dict)  # key -> job
    answers: list[tuple[float, int]] = field(default_factory=list)  # when, status
    refusals_without_time: int = 0
    statuses: "collections.Counter[int]" = field(default_factory=collections.Counter)
    twice: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.api.url, timeout=30, limits=limits) as http:
            tasks = [asyncio.create_task(self._submit(http)) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _submit(self, http: httpx.AsyncClient) -> None:
        while True:
            key = uuid.uuid4().hex
            while not await self._asked(http, key):
                await asyncio.sleep(0.1)
            if random.random() < 0.1:  # as after an answer that got lost
                before = self.acknowledged[key]
                while not await self._asked(http, key):
                    await asyncio.sleep(0.1)
                self.twice += self.acknowledged[key] != before
            await asyncio.sleep(0.05)

    async def _asked(self, http: httpx.AsyncClient, key: str) -> bool:
        """Whether a job was acknowledged."""
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        answer = await http.post("/generate", json={"prompt": key, "num_samples": 4, "seed": 1}, headers=headers)
        self.answers.append((time.monotonic(), answer.status_code))
        self.statuses[answer.status_code] += 1
        if answer.status_code in (200, 202):
            self.acknowledged[key] = answer.json()["id"]
            return True
        self.refusals_without_time += not {"retry-after", "retry-after-ms"} <= answer.headers.keys()
        return False


async def kill_queue(rounds: int) -> list[Figure]:
    """`kill -9` of the queue's server under load, Redis and Valkey, with the append-only file on."""
    figures = []
    for name in servers():
        figures += await _kill_server(name, rounds)
    return figures


async def _kill_server(kind: str, rounds: int) -> list[Figure]:
    name = "kill-queue"
    async with place(kind, image_budget_bytes=2**31) as here:
        crew = await here.workers(2, slots=32, step_seconds=0.005)
        load = _Load(await here.api())
        back: list[float] = []
        async with load.running():
            for _ in range(rounds):
                await asyncio.sleep(random.uniform(1.0, 3.0))
                os.kill((await here.queue.redis.info("server"))["process_id"], signal.SIGKILL)
                await asyncio.sleep(random.uniform(0.5, 3.0))
                await asyncio.to_thread(here.server.restart)
                returned = time.monotonic()
                while not any(when > returned and status in (200, 202) for when, status in load.answers[-CLIENTS:]):
                    await asyncio.sleep(0.01)
                back.append(time.monotonic() - returned)
            await asyncio.sleep(1.0)
        lost, unfinished = await _look_for(here, load)
        other = {status: count for status, count in load.statuses.items() if status not in (200, 202, 503)}
        return [
            exactly(name, f"{kind}: acknowledged jobs lost in {rounds} kills", 0, lost),
            exactly(name, f"{kind}: acknowledged jobs that were not completed", 0, unfinished),
            told(
                name,
                f"{kind}: jobs acknowledged; submissions answered 503 meanwhile",
                f"{len(load.acknowledged)}; {load.statuses[503]}",
            ),
            exactly(name, f"{kind}: submissions answered otherwise, such as 500", 0, sum(other.values())),
            exactly(name, f"{kind}: 503 without Retry-After and retry-after-ms", 0, load.refusals_without_time),
            exactly(name, f"{kind}: keys that made a second job", 0, load.twice),
            at_most(name, f"{kind}: until the API accepts again, slowest", RETURN_SECONDS, max(back), "s"),
            exactly(name, f"{kind}: workers that ended by it", 0, sum(process.poll() is not None for process in crew)),
            exactly(name, f"{kind}: gauges that are not 0 afterwards", 0, len(await at_rest(here.queue))),
        ]


async def disk_full(rounds: int) -> list[Figure]:
    """The disk of the queue's server is filled under load, and has room again seconds later, with Redis and Valkey."""
    figures = []
    for name in servers():
        figures += await _fill_disk(name, rounds)
    return figures


async def _fill_disk(kind: str, rounds: int) -> list[Figure]:
    name = "disk-full"
    async with place(kind, megabytes=DISK_MEGABYTES, image_budget_bytes=2**31) as here:
        crew = await here.workers(2, slots=32, step_seconds=0.005)
        load = _Load(await here.api())
        unready, healed, accepted, words = list[float](), list[float](), 0, set[str]()
        async with load.running(), httpx.AsyncClient(base_url=load.api.url, timeout=30) as http:

            async def seconds_until(ready: bool) -> float:
                began = time.monotonic()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while (answer := await http.get("/readyz")).is_success is not ready:
                        await asyncio.sleep(0.01)
                if not ready:
                    words.add(answer.json()["detail"])
                return time.monotonic() - began

            for _ in range(rounds):
                await asyncio.sleep(random.uniform(1.0, 3.0))
                here.disk.fill()
                unready.append(await seconds_until(False))
                full = time.monotonic()
                await asyncio.sleep(random.uniform(1.0, 5.0))
                accepted += sum(when > full + 0.5 and status in (200, 202) for when, status in load.answers)
                here.disk.free()
                healed.append(await seconds_until(True))
            await asyncio.sleep(1.0)
        lost, unfinished = await _look_for(here, load)
        other = {status: count for status, count in load.statuses.items() if status not in (200, 202, 503)}
        said = sum("disk of its server is full" in text for text in words)
        return [
            exactly(name, f"{kind}: acknowledged jobs lost in {rounds} times", 0, lost),
            exactly(name, f"{kind}: acknowledged jobs that were not completed", 0, unfinished),
            exactly(name, f"{kind}: jobs accepted meanwhile", 0, accepted),
            told(
                name,
                f"{kind}: jobs acknowledged before and after; submissions answered 503 meanwhile",
                f"{len(load.acknowledged)}; {load.statuses[503]}",
            ),
            exactly(name, f"{kind}: submissions answered otherwise, such as 500", 0, sum(other.values())),
            exactly(name, f"{kind}: 503 without Retry-After and retry-after-ms", 0, load.refusals_without_time),
            exactly(name, f"{kind}: reasons in /readyz other than the full disk", 0, len(words) - said),
            at_most(name, f"{kind}: until /readyz is 503, slowest", RETURN_SECONDS, max(unready), "s"),
            at_most(name, f"{kind}: until it is 200 when there is room, slowest", RETURN_SECONDS, max(healed), "s"),
            exactly(name, f"{kind}: workers that ended by it", 0, sum(process.poll() is not None for process in crew)),
            exactly(name, f"{kind}: gauges that are not 0 afterwards", 0, len(await at_rest(here.queue))),
        ]


async def _look_for(here: Place, load: _Load) -> tuple[int, int]:
    """How many acknowledged jobs the queue does not know, and how many it has not completed when it is at rest."""
    await at_rest(here.queue, 60.0)
    async with here.queue.redis.pipeline(transaction=False) as pipe:
        for job in load.acknowledged.values():
            pipe.hget(here.queue.keys("job", job), "status")
        states = await pipe.execute()
    return states.count(None), sum(state not in (None, b"succeeded") for state in states)


async def kill_api(rounds: int) -> list[Figure]:
    """`kill -9` of the API with 100 open event streams; it is started again on the same port."""
    name = "kill-api"
    gaps = repeated = snapshots = unended = 0
    async with place() as here:
        await here.workers(2, slots=32, step_seconds=0.02)
        api = await here.api()
        for _ in range(rounds):
            async with bestofn.AsyncClient(api.url) as client:
                jobs = [await client.submit(f"p {i}", num_samples=16, num_inference_steps=20) for i in range(STREAMS)]
                reading = [asyncio.create_task(_read(client, job.id)) for job in jobs]
                for _ in range(2):
                    await asyncio.sleep(random.uniform(1.0, 3.0))
                    here.end(api.process)
                    api.process.wait()
                    api = await here.api(api.port)
                told_live = await asyncio.gather(*reading)
                told_late = await asyncio.gather(*(_read(client, job.id) for job in jobs))
            for live, late in zip(told_live, told_late, strict=True):
                snapshots += sum(isinstance(event, SnapshotEvent) for event in live)
                unended += live[-1].type != "result"
                # Of the progress, only the last is kept for those who come late.
                seen, all_there = (_places(events) for events in (live, late))
                gaps += len(set(all_there) - set(seen))
                repeated += len(seen) - len(set(seen))
    return [
        exactly(name, f"streams of {rounds * STREAMS} that did not end with a result", 0, unended),
        exactly(name, "events missed", 0, gaps),
        exactly(name, "events sent twice", 0, repeated),
        exactly(name, "streams that had to begin afresh", 0, snapshots),
    ]


async def _read(client: bestofn.AsyncClient, job: str) -> list[JobEvent]:
    return [event async for event in client.events(job)]


def _places(events: Sequence[JobEvent]) -> list[str]:
    return [event.id for event in events if event.id is not None and event.type != "progress"]
