"""Work that hurts: heats that kill their worker, allocations that fail, a judge that answers nonsense."""

import asyncio

import httpx
from figures import Figure, at_most, exactly, told
from place import PATIENCE_SECONDS, at_rest, ended, place, spec, submitted

from bestofn.service.core.jobs import JobStatus
from bestofn.service.engine.fake import KILLS, RAMBLES


async def poison(rounds: int) -> list[Figure]:
    """Jobs whose heats kill their worker, among jobs of others. Their supervisor starts each worker again."""
    name = "poison"
    async with place(lease_seconds=1.0, heartbeat_seconds=0.2) as here:
        crew = await here.workers(3)
        bad = [await submitted(here.queue, prompt=f"{KILLS} {i}", num_samples=4) for i in range(rounds)]
        good = [await submitted(here.queue, num_samples=16, seed=i) for i in range(10 * rounds)]
        ends = asyncio.gather(*(ended(here.queue, job, 5 * PATIENCE_SECONDS) for job in bad + good))
        deaths = 0
        while not ends.done():
            for index, process in enumerate(crew):
                if process.poll() is not None:
                    deaths += 1
                    crew[index] = here.worker()
            await asyncio.sleep(0.05)
        states = await ends
        reasons = [str((await here.queue.record(job)).error) for job in bad]
        failed, completed = states[:rounds].count(JobStatus.FAILED), states[rounds:].count(JobStatus.SUCCEEDED)
        dead = await here.queue.redis.xlen(here.queue.keys("dead_letters"))
        return [
            exactly(name, "jobs that failed, their heat killing its worker", rounds, failed),
            exactly(name, "of these, with the cause in words", rounds, sum("worker died" in said for said in reasons)),
            at_most(name, "deaths: a heat kills three workers in company and one alone", 4 * rounds, deaths, "deaths"),
            exactly(name, "heats in the dead-letter stream", rounds, dead),
            exactly(name, "jobs of others completed", 10 * rounds, completed),
            exactly(name, "gauges that are not 0 afterwards", 0, len(await at_rest(here.queue))),
        ]


async def memory(rounds: int) -> list[Figure]:
    """The true engine with memory for 3 rows, 1 image in decode, 2 in judging, and for nothing above 128 pixels."""
    name = "memory"
    async with place(stall_seconds=60.0) as here:
        worker = here.worker(kind="cramped")
        info = (await here.warm([worker]))[worker.pid]
        revisions = {"model": info.model.revision, "judge": info.judge.revision, "heat_size": 8, "num_samples": 8}
        notes = here.notes / f"{worker.pid}.memory"

        async def draw(**fields: object) -> str:
            job = spec(**(revisions | {"width": 128, "height": 128, "num_inference_steps": 2} | fields))
            await here.queue.submit(job, cost=1)
            return job.id

        first = await draw()
        done = await ended(here.queue, first)
        warnings = " ".join(text for o in (await here.queue.record(first)).outcomes for text in o.warnings)
        halved = len(notes.read_text().splitlines())
        again = [await ended(here.queue, await draw(seed=seed)) for seed in range(rounds)]
        remembered = len(notes.read_text().splitlines()) - halved
        large = await draw(width=256, height=256, num_samples=1)
        beside = await draw(num_samples=2)
        failed, good = await ended(here.queue, large, 5 * PATIENCE_SECONDS), await ended(here.queue, beside)
        reason = str((await here.queue.record(large)).error)
        stages = sum(f"{stage} ran in batches of" in warnings for stage in ("denoising", "decoding", "judging"))
        return [
            exactly(name, "stages (denoise, decode, judge) that went on in smaller batches", 3, stages),
            exactly(name, "such a job completes", 1, int(done is JobStatus.SUCCEEDED)),
            told(name, "allocations that failed until every batch fitted", str(halved)),
            exactly(name, f"allocations that failed in {rounds} more jobs: the sizes are remembered", 0, remembered),
            exactly(name, "these jobs complete", rounds, again.count(JobStatus.SUCCEEDED)),
            exactly(name, "an image that does not fit alone fails its job", 1, int(failed is JobStatus.FAILED)),
            exactly(name, "and says so in words", 1, int("needs more memory than is free" in reason)),
            exactly(name, "the other job completes", 1, int(good is JobStatus.SUCCEEDED)),
            exactly(name, "workers that ended by it", 0, int(worker.poll() is not None)),
        ]


async def rambling(rounds: int) -> list[Figure]:
    """A judge whose logits are no numbers, or whose answer is prose."""
    name = "judge-garbage"
    counted = last = told_so = numbers = 0
    async with place() as here:
        await here.workers(1)
        api = await here.api()
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            for seed in range(rounds):
                body = {"prompt": RAMBLES, "num_samples": 32, "seed": 1000 * seed, "top_k": 4}
                result = (await http.post("/generate", json=body)).json()
                order = sorted(result["candidates"], key=lambda candidate: candidate["rank"])
                useless = [c["verdict"]["answer"] == "other" or c["verdict"]["yes_logit"] is None for c in order]
                counted += 0 < sum(useless) < 32
                last += useless == sorted(useless)
                words = f"gave {sum(useless)} of 32 candidates no usable verdict"
                told_so += any(words in warning for warning in result["warnings"])
                numbers += all(image["verdict"]["p_yes"] is not None for image in result["images"])
    return [
        exactly(name, "jobs with usable and useless verdicts that complete", rounds, counted),
        exactly(name, "of these, the useless ones rank last", rounds, last),
        exactly(name, "a warning counts them", rounds, told_so),
        exactly(name, "the winners have a verdict", rounds, numbers),
    ]
