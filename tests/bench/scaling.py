"""Workers: heats of 16 candidates that each take an engine a fixed time asleep, on 1 to 16 workers with as many heats
for each. The workers are processes on this machine, so that their own work shares its cores."""

import asyncio
import time

from figures import Measured, Table, at_least
from stand import spec, stand

STEPS, STEP_SECONDS, SLOTS = 20, 0.05, 16
HEAT_SECONDS = STEPS * STEP_SECONDS
JOBS = 4  # at once, of equal size


def measure(short: bool) -> Measured:
    """Each number of workers in turn, on one queue."""
    return asyncio.run(_measure((1, 2) if short else (1, 2, 4, 8, 16), 2 if short else 8))


async def _measure(counts: tuple[int, ...], heats: int) -> Measured:
    seconds: dict[int, float] = {}
    async with stand() as here:
        running = 0
        for count in counts:
            await here.sleepers(count - running, SLOTS, STEP_SECONDS)
            running = count
            jobs = [
                spec(num_samples=SLOTS * heats * count // JOBS, num_inference_steps=STEPS, seed=seed, heat_size=SLOTS)
                for seed in range(JOBS)
            ]
            begun = time.perf_counter()
            for job in jobs:
                await here.queue.submit(job, cost=1)
            await asyncio.gather(*(here.ended(job.id) for job in jobs))
            seconds[count] = time.perf_counter() - begun
    one, ideal = seconds[counts[0]], heats * HEAT_SECONDS
    rows = [
        (count, heats * count, took, SLOTS * heats * count / took, one / took, ideal / took)
        for count, took in seconds.items()
    ]
    most = counts[-1]
    return Measured(
        [Table(("workers", "heats", "s", "candidates/s", "efficiency", "of the engines' time"), rows)],
        [
            at_least(f"efficiency at {most} workers", one / seconds[most], 0.95),
            at_least(f"of the engines' own time at {most} workers", ideal / seconds[most], 0.95),
        ],
        [
            "Efficiency is the speed of a worker against that of one alone; the last column compares with engines that "
            "are never without work."
        ],
    )
