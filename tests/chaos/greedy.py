"""One caller takes all that it can get of the API; another key's jobs and reads go on."""

import asyncio
import sys
import time
from pathlib import Path

import httpx
from figures import Figure, at_most, exactly, percentile, told
from place import Api, Place, at_rest, ended, place, spec

CALLER = Path(__file__).parent / "greedy_caller.py"
LARGE = 4096
DESCRIPTORS = 1024  # that the API may have open
SECONDS = 3.0  # for the greedy caller to take what it gets
READS_SECONDS = 0.1  # at the 99th percentile
LINES_A_SECOND = 50  # of the API's log, besides those of requests
SLOWER, MORE_SECONDS = 2.0, 2.0


async def greedy(rounds: int) -> list[Figure]:
    """Idle connections without a key, then streams and waits of one key, then reads of large jobs."""
    name = "greedy"
    figures: list[Figure] = []
    async with place(max_queued_candidates=10**6) as here:
        here.keys("greedy", "other")
        await here.workers(1, slots=64, step_seconds=0.1)
        api = await here.api(descriptors=DESCRIPTORS)
        done = [await _large(here) for _ in range(2)]
        async with httpx.AsyncClient(base_url=api.url, timeout=60, headers={"Authorization": "Bearer other"}) as http:
            running = spec(num_samples=LARGE, num_inference_steps=20, heat_size=16, priority="batch")
            await here.queue.submit(running, cost=1, caller="greedy")
            quiet, reads = await _other(http, rounds)
            figures.append(told(name, "quiet, with a large job: job of 4, slowest; reads, p99", _seconds(quiet, reads)))
            for kind, count, jobs in (
                ("idle", 1100, []),
                ("calls", 5100, [running.id]),
                ("reads", 32, done),
            ):
                log, before = here.folder / f"greedy-{kind}.log", _other_lines(api)
                command = [sys.executable, "-P", str(CALLER), kind, str(api.port), "greedy", str(count), *jobs]
                caller = here.start(command, log)
                await asyncio.sleep(SECONDS)
                begun, waited = time.monotonic(), _waited(api)
                slow, reads = await _other(http, rounds)
                waited = (_waited(api) - waited) / (time.monotonic() - begun)
                seconds = time.monotonic() - begun + SECONDS
                calls = (await http.get("/status")).json()["calls"]
                here.end(caller)
                lines = (_other_lines(api) - before) / seconds
                figures += [
                    told(name, f"{kind}: what the greedy caller got", log.read_text().strip().rpartition("\n")[2]),
                    told(name, f"{kind}: /status", str(calls)),
                    told(name, f"{kind}: time that the API's event loop waited for a processor", f"{waited:.0%}"),
                    at_most(
                        name, f"{kind}: another key's job of 4", SLOWER * max(quiet) + MORE_SECONDS, max(slow), "s"
                    ),
                    at_most(name, f"{kind}: reads, p99", 1000 * READS_SECONDS, 1000 * percentile(reads, 0.99), "ms"),
                    at_most(name, f"{kind}: lines of the log a second", LINES_A_SECOND, lines, "lines"),
                ]
        clients = await here.queue.redis.client_list()
        figures.append(told(name, "connections to Redis at the end", str(len(clients))))
        await here.queue.cancel(running.id)
        left = await at_rest(here.queue, 60.0)
    return [*figures, exactly(name, "gauges that are not 0 afterwards", 0, len(left))]


async def _large(here: Place) -> str:
    large = spec(num_samples=LARGE, num_inference_steps=1, heat_size=16)
    await here.queue.submit(large, cost=1, caller="greedy")
    await ended(here.queue, large.id)
    return large.id


async def _other(http: httpx.AsyncClient, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of jobs of 4, one after the other, and of reads meanwhile."""
    jobs: list[float] = []
    reads: list[float] = []
    until = time.monotonic() + seconds
    job = await http.post("/generate", json={"prompt": "a ring", "num_samples": 4})

    async def read() -> None:
        while time.monotonic() < until:
            begun = time.monotonic()
            (await http.get(f"/jobs/{job.json()['id']}")).raise_for_status()
            reads.append(time.monotonic() - begun)
            await asyncio.sleep(0.02)

    reading = asyncio.create_task(read())
    while time.monotonic() < until:
        begun = time.monotonic()
        (await http.post("/generate", json={"prompt": "a star", "num_samples": 4})).raise_for_status()
        jobs.append(time.monotonic() - begun)
    await reading
    return jobs, reads


def _seconds(jobs: list[float], reads: list[float]) -> str:
    return f"{max(jobs):.2f} s of {len(jobs)}; {1000 * percentile(reads, 0.99):.1f} ms of {len(reads)}"


def _waited(api: Api) -> float:
    """Seconds that the API's main thread could have run and had no processor: other programs' share; Linux only."""
    file = Path(f"/proc/{api.process.pid}/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.is_file() else 0.0


def _other_lines(api: Api) -> int:
    return len(api.log.read_text().splitlines()) - len(api.requests())
