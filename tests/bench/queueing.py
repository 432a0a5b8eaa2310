"""The queue and the API without engines: heats a second with an engine that takes no time, how soon a worker that waits
gets a heat, how soon calls are answered while a hundred clients wait, and what a candidate takes of Redis."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import httpx
from figures import Figure, Measured, Table, at_most, percentile
from memory import commands, job_bytes
from stand import spec, stand

CLIENTS = 100
KINDS = ("events", "heats", "progress", "job", "kept", "gone")


def measure(short: bool) -> Measured:
    """Each on a queue of its own."""
    tables: list[Table] = []
    figures: list[Figure] = []
    for part in (_heats, _hand_off, _latency, _redis):
        measured = asyncio.run(part(short))
        tables += measured.tables
        figures += measured.figures
    return Measured(tables, figures, ["Clients, API, workers and Redis share this machine's cores."])


async def _heats(short: bool) -> Measured:
    rows = []
    async with stand() as here:
        for workers in (1, 2):
            await here.sleepers(1)
            for size in (16, 1):
                heats = 32 if short else 256
                await here.run(spec(num_samples=4 * size, heat_size=size))
                took = await here.run(spec(num_samples=heats * size, heat_size=size))
                rows.append((workers, size, heats, heats / took, heats * size / took))
    return Measured([Table(("workers", "candidates a heat", "heats", "heats/s", "candidates/s"), rows)])


async def _hand_off(short: bool) -> Measured:
    count = 20 if short else 300
    async with stand() as here:
        await here.sleepers(1)
        submitted = {}
        for _ in range(count):
            job = spec(num_samples=1, heat_size=1)
            submitted[job.id] = time.monotonic()
            await here.run(job)
        lines = [line.split() for line in here.notes.read_text().splitlines()]
    waits = [1000 * (float(at) - submitted[job]) for at, job in lines]
    return Measured(
        [
            Table(
                ("hand-off to a waiting worker", "of", "p50 ms", "p99 ms"),
                [("from submit to the engine", count, percentile(waits, 0.5), percentile(waits, 0.99))],
            )
        ]
    )


async def _latency(short: bool) -> Measured:
    timed: dict[str, list[float]] = {}
    async with stand() as here:
        (slow,) = await here.sleepers(1, slots=2 * CLIENTS, step_seconds=1.0 if short else 2.0)
        _, url = await here.api()
        async with _clients(url, 1) as (http,), _clients(url, CLIENTS) as crowd:
            waiting = [asyncio.create_task(_answered(one, seed)) for seed, one in enumerate(crowd)]
            while (await here.queue.backlog()).jobs < CLIENTS:
                await asyncio.sleep(0.05)
            known = (await _generate(http, 0, "respond-async")).headers["Location"]
            calls = 20 if short else 200
            timed["POST /generate, respond-async"] = await _timed(
                calls // 4, lambda: _generate(http, 0, "respond-async")
            )
            timed["GET /jobs/{id}"] = await _timed(calls, lambda: http.get(known))
            timed["GET /livez"] = await _timed(calls, lambda: http.get("/livez"))
            still = sum(not task.done() for task in waiting)
            answers = await asyncio.gather(*waiting)
            timed[f"a job's end to its answer, {CLIENTS} at once"] = [
                1000 * at - int(await here.queue.redis.hget(here.queue.keys("job", job), "ended"))
                for job, at in answers
            ]
        await here.stop(slow)
        await here.sleepers(1, slots=CLIENTS)
        async with _clients(url, CLIENTS) as crowd:
            rounds, begun = 1 if short else 5, time.perf_counter()
            every = await asyncio.gather(*(_timed(rounds, partial(_generate, one, 1)) for one in crowd))
            speed = CLIENTS * rounds / (time.perf_counter() - begun)
            timed[f"POST /generate to its result, {CLIENTS} at once"] = [took for own in every for took in own]
    rows: list[tuple[str | float, ...]] = [
        (name, len(values), percentile(values, 0.5), percentile(values, 0.99)) for name, values in timed.items()
    ]
    rows.append((f"results a second for {CLIENTS} clients", CLIENTS * rounds, speed, ""))
    return Measured([Table((f"API while {still} clients wait", "of", "p50 ms", "p99 ms"), rows)])


@contextlib.asynccontextmanager
async def _clients(url: str, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients with a connection each: one client's pool of a hundred would cost more than the server."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=120.0, verify=False))
            for _ in range(count)
        ]


async def _generate(http: httpx.AsyncClient, seed: int, prefer: str = "wait=120") -> httpx.Response:
    body = {"prompt": "a red star", "num_samples": 1, "seed": seed}
    return await http.post("/generate", json=body, headers={"Prefer": prefer})


async def _answered(http: httpx.AsyncClient, seed: int) -> tuple[str, float]:
    """A job's id, and the time at which its result was there."""
    answer = await _generate(http, seed)
    at = time.time()
    return answer.raise_for_status().json()["id"], at


async def _timed(count: int, call: Callable[[], Awaitable[httpx.Response]]) -> list[float]:
    """Milliseconds of calls one after the other."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        answer = await call()
        taken.append(1000 * (time.perf_counter() - begun))
        answer.raise_for_status()
    return taken


async def _redis(short: bool) -> Measured:
    sizes, commands_, figures = [], [], []
    async with stand() as here:
        await here.sleepers(1, step_seconds=0.05)
        await here.run(spec())
        for N in (64, 256) if short else (256, 1024):
            job = spec(num_samples=N, top_k=4)
            from_clients, in_scripts = await commands(here.queue, here.run(job))
            found = await job_bytes(here.queue, job.id)
            images = found.pop("images")
            total = sum(found.values())
            sizes.append((N, *(found.get(kind, 0) / N for kind in KINDS), total / N, images / job.top_k))
            heats = from_clients.total() / job.schedule.num_heats
            commands_.append((N, heats, from_clients.total() / N, in_scripts.total() / N))
            figures.append(at_most(f"Redis a candidate without the winners' images, N = {N}", total / N, 600, "bytes"))
    return Measured(
        [
            Table(("Redis bytes a candidate, N", *KINDS, "all of these", "an image"), sizes),
            Table(
                ("Redis commands, N", "of clients, a heat", "of clients, a candidate", "in scripts, a candidate"),
                commands_,
            ),
        ],
        figures,
    )
