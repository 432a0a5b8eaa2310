"""What queue and API add to a job on the shapes checkpoint: the same job through an API process, Redis and a worker
process, and by the engine alone in a process of its own."""

import asyncio
import statistics
import time

import httpx
from drawer import Drawer, drawers, prompts
from figures import Measured, Table, at_most
from stand import stand


def measure(short: bool) -> Measured:
    """Pairs in alternating order."""
    with drawers("engine") as (alone,):
        return asyncio.run(_measure(alone, 8 if short else 256, 1 if short else 3))


async def _measure(alone: Drawer, N: int, rounds: int) -> Measured:
    served: list[tuple[float, float]] = []  # seconds of a job, and those of them that are in no stage of the engine
    bare: list[tuple[float, float]] = []
    prompt = prompts()
    async with stand() as here:
        await here.worker()
        _, url = await here.api()
        async with httpx.AsyncClient(base_url=url, timeout=300.0) as http:

            async def ask(N: int, seed: int) -> tuple[float, float]:
                begun = time.perf_counter()
                body = {"prompt": next(prompt), "num_samples": N, "seed": seed}
                answer = await http.post("/generate", json=body, headers={"Prefer": "wait=300"})
                told = answer.raise_for_status().json()
                assert told["complete"], told["status"]
                return time.perf_counter() - begun, sum(told["usage"]["seconds"].values())

            async def of_server(seed: int) -> None:
                took, stages = await ask(N, seed)
                served.append((took, took - stages))

            async def of_engine(seed: int) -> None:
                drawn = await asyncio.to_thread(alone.draw, N, seed)
                bare.append((drawn.seconds, drawn.seconds - sum(drawn.stages.values())))

            await ask(2, 1)
            await asyncio.to_thread(alone.draw, 2, 1)
            for number in range(rounds):
                for way in (of_engine, of_server)[:: 1 if number % 2 == 0 else -1]:
                    await way(100 * number)
    rows = [
        (way, N, statistics.median(took for took, _ in runs), 100 * statistics.median(out / took for took, out in runs))
        for way, runs in (("engine alone", bare), ("served", served))
    ]
    share = 100 * (1 - rows[0][2] / rows[1][2])
    return Measured(
        [Table(("", "N", "s", "outside the engine's stages %"), rows)],
        [at_most(f"queue and API, N = {N}", share, 2.0, "% of the wall time")],
        [f"Medians of {rounds} jobs each. What is wanted is the difference of the two times, not of the last column."],
    )
