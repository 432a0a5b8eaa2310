"""How cost grows with N: jobs of the sleeping engine, which takes no time, through one API process and one worker
process, as a client asks for them: wait for the result, fetch every page of it and the winner."""

import asyncio
import time

import httpx
from drawer import peak_bytes
from figures import Measured, Table, at_most
from memory import job_bytes
from stand import stand

MIB = 2**20


def measure(short: bool) -> Measured:
    """Ascending, so that a peak is that of the N before it or its own."""
    return asyncio.run(_measure((1, 32, 256) if short else (1, 32, 256, 1024, 4096)))


async def _measure(counts: tuple[int, ...]) -> Measured:
    rows, workers, per_candidate = [], {}, {}
    async with stand() as here:
        (worker,) = await here.sleepers(1)
        api, url = await here.api()
        async with httpx.AsyncClient(base_url=url, timeout=120.0) as http:
            await _ask(http, 1)
            for N in counts:
                used = (await here.queue.redis.info("memory"))["used_memory"]
                job, took, paged = await _ask(http, N)
                grown = (await here.queue.redis.info("memory"))["used_memory"] - used
                found = await job_bytes(here.queue, job)
                per_candidate[N] = (sum(found.values()) - found["images"]) / N
                workers[N] = peak_bytes(worker.pid)
                rows.append(
                    (
                        N,
                        took,
                        1000 * took / N,
                        paged,
                        peak_bytes(api.pid) / MIB,
                        workers[N] / MIB,
                        grown / 1024,
                        per_candidate[N],
                    )
                )
    first, last = 32, counts[-1]
    return Measured(
        [
            Table(
                (
                    "N",
                    "s",
                    "ms a candidate",
                    "all pages s",
                    "API peak MiB",
                    "worker peak MiB",
                    "Redis KiB",
                    "Redis bytes a candidate",
                ),
                rows,
            )
        ],
        [
            at_most(f"worker's peak, N = {last} against {first}", workers[last] / workers[first], 1.1, "x"),
            at_most(f"Redis a candidate without the winner's image, N = {last}", per_candidate[last], 600, "bytes"),
        ],
        ["Redis KiB is what the whole server has grown by. A job's keys have a fixed part, which tells when N is 1."],
    )


async def _ask(http: httpx.AsyncClient, N: int) -> tuple[str, float, float]:
    """A job's id, the seconds until its result, and those that the rest of its pages and the winner took."""
    begun = time.perf_counter()
    answer = await http.post("/generate", json={"prompt": "a red star", "num_samples": N, "seed": 1})
    answer.raise_for_status()
    told = answer.json()
    assert told["complete"], told["status"]
    ended = time.perf_counter()
    page, judged = told, len(told["candidates"])
    while page["next"]:
        page = (await http.get(page["next"])).json()
        judged += len(page["candidates"])
    assert judged == N
    (await http.get(told["images"][0]["url"])).raise_for_status()
    return str(told["id"]), ended - begun, time.perf_counter() - ended
