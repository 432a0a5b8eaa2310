"""Workers that are killed, stopped, hung and told to leave at random moments: nothing is lost, nothing differs."""

import asyncio
import random
import signal
import time
from dataclasses import dataclass

from engine import HANGS_ONCE
from figures import Figure, at_most, exactly, percentile, told
from place import LEASE_SECONDS, Place, answer, at_rest, ended, place, spec, started, submitted

from bestofn.service.core.jobs import JobStatus
from bestofn.service.queue.codec import Event
from bestofn.service.queue.job_events import follow_entries
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.keys import GROUP, pair_id

TAKEN_OVER = LEASE_SECONDS + 2
SEEDS = 5  # so many different jobs, each run once undisturbed


@dataclass
class _Jobs:
    """The jobs of a section: what they come to undisturbed, and how many came to something else."""

    here: Place
    answers: list[tuple[object, ...]]
    seconds: float  # that one takes
    lost: int = 0
    differing: int = 0
    repeated: int = 0

    @classmethod
    async def undisturbed(cls, here: Place) -> "_Jobs":
        answers = []
        begun = time.monotonic()
        for seed in range(SEEDS):
            job = await submitted(here.queue, num_samples=64, top_k=3, seed=seed)
            assert await ended(here.queue, job) is JobStatus.SUCCEEDED
            answers.append(await answer(here.queue, job))
        return cls(here, answers, (time.monotonic() - begun) / SEEDS)

    async def submit(self, number: int) -> str:
        """The job of a round, in the queue."""
        return await submitted(self.here.queue, num_samples=64, top_k=3, seed=number % SEEDS)

    async def check(self, number: int, job: str) -> None:
        """Waits for the job of a round, and compares."""
        try:
            self.lost += await ended(self.here.queue, job) is not JobStatus.SUCCEEDED
        except TimeoutError:
            self.lost += 1
            return
        self.differing += await answer(self.here.queue, job) != self.answers[number % SEEDS]
        stored = [entry async for entries in follow_entries(self.here.queue, job) for entry in entries]
        heats = [event.data["heat"] for event in (Event.read(*entry) for entry in stored) if event.type == "heat"]
        self.repeated += sorted(heats) != list(range(16))

    def figures(self, name: str, rounds: int) -> list[Figure]:
        return [
            exactly(name, f"jobs lost in {rounds} rounds", 0, self.lost),
            exactly(name, "results that differ from the undisturbed run, winners' bytes included", 0, self.differing),
            exactly(name, "jobs with a heat filed twice or not at all", 0, self.repeated),
        ]


async def kill_workers(rounds: int) -> list[Figure]:
    """`kill -9` of one of three workers at a random moment of a job, with another put in its place."""
    name = "kill-workers"
    async with place() as here:
        crew = await here.workers(3)
        jobs = await _Jobs.undisturbed(here)
        reclaims: list[float] = []
        for number in range(rounds):
            victim = random.randrange(3)
            info = (await here.warm(crew))[crew[victim].pid]
            job = await jobs.submit(number)
            await asyncio.sleep(random.uniform(0.0, 0.9 * jobs.seconds))
            here.end(crew[victim])
            crew[victim] = here.worker()
            reclaims += await _reclaims(here.queue, info.worker)
            await jobs.check(number, job)
        return [
            *jobs.figures(name, rounds),
            at_most(name, "an abandoned heat is taken over, p95", TAKEN_OVER, percentile(reclaims, 0.95), "s"),
            told(name, "heats abandoned; taken over, median and slowest", _spread(reclaims)),
            exactly(name, "gauges that are not 0 afterwards", 0, len(await at_rest(here.queue))),
        ]


async def stop_worker(rounds: int) -> list[Figure]:
    """SIGSTOP of a worker in the middle of a job, SIGCONT once others have finished it."""
    name = "stop-worker"
    async with place("valkey") as here:
        crew = await here.workers(2)
        jobs = await _Jobs.undisturbed(here)
        changed = 0
        reclaims: list[float] = []
        for number in range(rounds):
            victim = crew[number % 2]
            info = (await here.warm(crew))[victim.pid]
            job = await jobs.submit(number)
            await started(here.queue, job)
            await asyncio.sleep(random.uniform(0.0, 0.5 * jobs.seconds))
            victim.send_signal(signal.SIGSTOP)
            reclaims += await _reclaims(here.queue, info.worker)
            await jobs.check(number, job)
            before = await answer(here.queue, job)
            victim.send_signal(signal.SIGCONT)
            await here.warm(crew)
            await asyncio.sleep(0.5)  # its late results come in now
            changed += await answer(here.queue, job) != before
        return [
            *jobs.figures(name, rounds),
            exactly(name, "results changed by the late worker", 0, changed),
            at_most(name, "a stopped worker's heat is taken over, p95", TAKEN_OVER, percentile(reclaims, 0.95), "s"),
            exactly(name, "workers that ended by it", 0, sum(process.poll() is not None for process in crew)),
        ]


async def hang(rounds: int) -> list[Figure]:
    """A tick that never returns: its heats are taken over after the stall time and a lease, and its worker ends."""
    name, stall = "hang", 1.0
    lost, hung = 0, 0
    seconds: list[float] = []
    for _ in range(rounds):
        async with place(stall_seconds=stall) as here:
            crew = await here.workers(2)
            await ended(here.queue, await submitted(here.queue, num_samples=32))  # usual ticks are known now
            job = await submitted(here.queue, prompt=HANGS_ONCE, num_samples=8)
            await started(here.queue, job)
            begun = time.monotonic()
            lost += await ended(here.queue, job) is not JobStatus.SUCCEEDED
            seconds.append(time.monotonic() - begun)
            end = time.monotonic() + 60.0
            while all(process.poll() is None for process in crew) and time.monotonic() < end:
                await asyncio.sleep(0.1)
            hung += [process.poll() for process in crew].count(1) != 1
    return [
        exactly(name, f"jobs lost in {rounds} rounds", 0, lost),
        at_most(name, "job done after its tick hung, slowest", stall + TAKEN_OVER, max(seconds), "s"),
        exactly(name, "hung workers that did not end by themselves with 1", 0, hung),
    ]


async def drain(rounds: int) -> list[Figure]:
    """SIGTERM of a worker under load: it hands its heats back, at no delivery's cost."""
    name = "drain"
    async with place(lease_seconds=60.0) as here:
        crew = await here.workers(2)
        jobs = await _Jobs.undisturbed(here)
        failed = 0
        leaving: list[float] = []
        waits: list[float] = []
        for number in range(rounds):
            victim = crew[number % 2]
            await here.warm(crew)
            begun = time.monotonic()
            job = await jobs.submit(number)
            await asyncio.sleep(random.uniform(0.0, 0.9 * jobs.seconds))
            sent = time.monotonic()
            victim.send_signal(signal.SIGTERM)
            failed += await asyncio.to_thread(victim.wait, 30) != 0
            leaving.append(time.monotonic() - sent)
            crew[number % 2] = here.worker()
            await jobs.check(number, job)
            waits.append(time.monotonic() - begun)
        return [
            *jobs.figures(name, rounds),
            exactly(name, "workers that did not end with 0", 0, failed),
            at_most(name, "job done though the lease is 60 s, slowest", 15, max(waits), "s"),
            told(name, "workers asked to leave; gone, median and slowest", _spread(leaving)),
        ]


async def _reclaims(queue: Queue, worker: str) -> list[float]:
    """Seconds from now until each heat that this worker holds is somebody else's, or done."""
    sample = spec()
    ready = queue.keys("ready", pair_id(sample.schema_version, *sample.revisions), "interactive")
    begun, found = time.monotonic(), []
    held: set[bytes] | None = None
    async with asyncio.timeout(LEASE_SECONDS + 30):
        while held is None or held:
            rows = await queue.redis.xpending_range(ready, GROUP, "-", "+", 100, worker)
            left = {row["message_id"] for row in rows}
            found += [time.monotonic() - begun] * (len(held - left) if held is not None else 0)
            held = left
            await asyncio.sleep(0.02)
    return found


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"{len(seconds)}; {percentile(seconds, 0.5):.2f} s and {max(seconds):.2f} s"
