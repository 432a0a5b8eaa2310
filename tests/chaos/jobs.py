"""Jobs that end early: canceled by the hundred, left by their callers, or at their deadline."""

import asyncio
import contextlib
import random
import time

import httpx
from figures import Figure, at_most, exactly, percentile, told
from place import Place, at_rest, place

TICK_SECONDS = 0.05


async def cancel_storm(rounds: int) -> list[Figure]:
    """So many jobs, nine of ten canceled at random moments, beside jobs of somebody else."""
    name = "cancel-storm"
    kept = rounds // 10
    async with place(max_queued_candidates=10**6) as here:
        await here.workers(2, slots=16, step_seconds=TICK_SECONDS)
        api = await here.api()
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=api.url, timeout=60, limits=limits) as http:
            others = [await _submit(http, f"other {i}", 4) for i in range(10)]
            canceled_at: dict[str, float] = {}
            too_late: list[str] = []

            async def live(number: int) -> str:
                job = await _submit(http, f"p {number}", 64)  # in turns, so that none is done before its cancel comes
                if number % 10:
                    await asyncio.sleep(random.uniform(0.0, 10.0))
                    answer = await http.delete(f"/jobs/{job}")
                    if answer.json()["status"] == "canceled":
                        canceled_at[job] = time.time()
                    else:
                        too_late.append(job)
                return job

            jobs = await asyncio.gather(*(live(number) for number in range(rounds)))
            left = await at_rest(here.queue, 120.0)
            states = {job: (await http.get(f"/jobs/{job}")).json()["status"] for job in [*jobs, *others]}
        ended = [states[job] for job in jobs]
        starts = _starts(here)
        after = [when - canceled_at[job] for when, job in starts if job in canceled_at and when > canceled_at[job]]
        done = sum(state == "succeeded" for state in ended[::10])
        wrong = sum(states[job] != "canceled" for job in canceled_at)
        late = sum(seconds > TICK_SECONDS for seconds in after)
        return [
            exactly(name, f"jobs of {kept} completed", kept, done),
            exactly(name, "jobs canceled, or done before", rounds - kept, ended.count("canceled") + len(too_late)),
            told(name, "jobs that were done before they were canceled", str(len(too_late))),
            exactly(name, "jobs canceled that ended otherwise", 0, wrong),
            exactly(name, "heats of canceled jobs that start more than a tick later", 0, late),
            told(name, "heats that started within that tick, of all", f"{len(after)} of {len(starts)}"),
            exactly(name, "jobs of somebody else completed", 10, sum(states[job] == "succeeded" for job in others)),
            exactly(name, "gauges that are not 0 afterwards", 0, len(left)),
        ]


async def hang_up(rounds: int) -> list[Figure]:
    """Callers who hang up while they wait for their job, half of them with `Prefer: cancel-on-disconnect`."""
    name = "hang-up"
    async with place() as here:
        await here.workers(1, slots=64, step_seconds=0.1)
        api = await here.api()
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:

            async def leave(number: int) -> None:
                asked = "wait=30, cancel-on-disconnect" if number % 2 else "wait=30"
                headers = {"Prefer": asked, "Idempotency-Key": f"key {number}"}
                with contextlib.suppress(httpx.ReadTimeout):
                    await httpx.AsyncClient(base_url=api.url, timeout=httpx.Timeout(5.0, read=1.0)).post(
                        "/generate", json=_body(number), headers=headers
                    )

            def _body(number: int) -> dict[str, object]:
                return {"prompt": f"p {number}", "num_samples": 4, "num_inference_steps": 40, "seed": 1}

            await asyncio.gather(*(leave(number) for number in range(rounds)))
            await asyncio.sleep(1.0)
            states = []
            for number in range(rounds):
                headers = {"Prefer": "respond-async", "Idempotency-Key": f"key {number}"}
                answer = await http.post("/generate", json=_body(number), headers=headers)
                states.append(answer.json().get("status") if answer.is_success else answer.json()["code"])
            going_on = sum(state in ("queued", "running", "succeeded") for state in states[::2])
            canceled = sum(state in ("canceled", "job_canceled") for state in states[1::2])
            left = await at_rest(here.queue, 60.0)
        return [
            exactly(name, "jobs canceled whose callers asked for that", rounds // 2, canceled),
            exactly(name, "jobs that went on without their callers", rounds - rounds // 2, going_on),
            exactly(name, "gauges that are not 0 afterwards", 0, len(left)),
        ]


async def deadline(rounds: int) -> list[Figure]:
    """Jobs with a deadline: long ones, and ones behind them that are never started."""
    name = "deadline"
    async with place() as here:
        await here.workers(1, slots=8, step_seconds=0.02)
        api = await here.api()
        late: list[float] = []
        best = silent = 0
        async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
            for number in range(rounds):
                seconds = random.uniform(0.7, 1.5)
                begun = time.monotonic()
                body = {"prompt": f"p {number}", "num_samples": 2048, "deadline_seconds": seconds}
                blocked = {"prompt": f"q {number}", "num_samples": 4, "deadline_seconds": 0.3, "priority": "batch"}
                long = asyncio.create_task(http.post("/generate", json=body))
                await asyncio.sleep(0.15)
                never = await http.post("/generate", json=blocked)
                result = await long
                late.append(time.monotonic() - begun - seconds)
                told_all = result.json()
                judged = (told_all.get("usage") or {}).get("candidates", 0)
                image = await http.get(told_all["images"][0]["url"]) if told_all.get("images") else None
                best += (
                    (told_all["status"], told_all["complete"], told_all["stopped"]) == ("succeeded", False, "deadline")
                    and 0 < judged < 2048
                    and image is not None
                    and image.is_success
                )
                silent += never.status_code == 504 and "before it was started" in never.json()["detail"]
            left = await at_rest(here.queue)
        return [
            exactly(name, "jobs that gave the best so far, complete: false", rounds, best),
            exactly(name, "jobs that were never started and say so", rounds, silent),
            at_most(name, "answer after the deadline, p95", 1.0, percentile(late, 0.95), "s"),
            exactly(name, "gauges that are not 0 afterwards", 0, len(left)),
        ]


async def _submit(http: httpx.AsyncClient, prompt: str, num_samples: int) -> str:
    body = {"prompt": prompt, "num_samples": num_samples}
    answer = await http.post("/generate", json=body, headers={"Prefer": "respond-async"})
    return str(answer.raise_for_status().json()["id"])


def _starts(here: Place) -> list[tuple[float, str]]:
    """When each heat was given to an engine, as the workers have noted."""
    lines = [line.split() for file in here.notes.glob("*.heats") for line in file.read_text().splitlines()]
    return [(float(when), job) for when, job, _ in lines]
