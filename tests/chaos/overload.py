"""The door: a flood of requests, jobs of very different sizes side by side, and one key sent many times at once."""

import asyncio
import collections
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
from figures import Figure, at_most, exactly, percentile, told
from place import Api, at_rest, ended, place, spec

from bestofn.service.core.jobs import JobStatus

CLIENTS = 200
ACCEPTED = (200, 202)  # 200: it was done before the answer left
REFUSED_SECONDS = 0.05  # of the server's time, at the 99th percentile
LARGE = 2048


@dataclass
class _Flood:
    """Clients who submit as fast as they are answered, whatever they are told, on sockets of their own."""

    api: Api
    statuses: "collections.Counter[int]" = field(default_factory=collections.Counter)
    refused: list[float] = field(default_factory=list)  # seconds
    without_time: int = 0
    candidates: int = 0

    async def client(self, number: int, key: str, until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.api.port)
        while time.monotonic() < until:
            num_samples = 4 + number % 60
            body = json.dumps({"prompt": f"a star {number}", "num_samples": num_samples}).encode()
            own = f"Idempotency-Key: {uuid.uuid4().hex}\r\n" if number % 2 else ""
            head = (
                f"POST /generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
                f"Prefer: respond-async\r\n{own}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            begun = time.monotonic()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            await reader.readexactly(int(headers["content-length"]))
            status = int(lines[0].split()[1])
            self.statuses[status] += 1
            if status in (429, 503):
                self.refused.append(time.monotonic() - begun)
                self.without_time += not {"retry-after", "retry-after-ms"} <= headers.keys()
            elif status in ACCEPTED:
                self.candidates += num_samples
        writer.close()


async def flood(rounds: int) -> list[Figure]:
    """200 clients of one key submit as fast as they can for so many seconds; another key submits now and then."""
    name = "flood"
    limits: dict[str, Any] = {"max_queued_candidates": 2000, "max_queued_candidates_per_key": 1000}
    async with place(**limits) as here:
        here.keys("flood", "other")
        await here.workers(1, slots=16, step_seconds=0.05)
        api = await here.api()
        flooding = _Flood(api)
        until = time.monotonic() + rounds
        clients = [asyncio.create_task(flooding.client(number, "flood", until)) for number in range(CLIENTS)]
        others: set[str] = set()
        refused = over = 0
        headers = {"Authorization": "Bearer other", "Prefer": "respond-async"}
        async with httpx.AsyncClient(base_url=api.url, timeout=30, headers=headers) as http:
            while time.monotonic() < until:
                answer = await http.post("/generate", json={"prompt": "p", "num_samples": 4})
                others.add(answer.headers["X-Request-ID"])
                refused += answer.status_code not in ACCEPTED
                over += (await here.queue.backlog()).candidates > 2000
                await asyncio.sleep(0.2)
        await asyncio.gather(*clients)
        lines = api.requests()
        known = [line for line in lines if line["status"] in (429, 503)]
        other = sum(count for status, count in flooding.statuses.items() if status not in (*ACCEPTED, 429, 503))
        seconds = [line["seconds"] for line in known]
        served = [line["seconds"] for line in lines if line["request_id"] in others]
        return [
            told(name, "requests answered, of them refused", f"{flooding.statuses.total()}; {len(flooding.refused)}"),
            at_most(
                name, "server time of a refusal, p99", 1000 * REFUSED_SECONDS, 1000 * percentile(seconds, 0.99), "ms"
            ),
            told(name, "server time of refusals", _milliseconds(seconds)),
            told(name, "refusals as clients see them", _milliseconds(flooding.refused)),
            exactly(name, "refusals without Retry-After and retry-after-ms", 0, flooding.without_time),
            exactly(name, "requests answered otherwise, such as 500", 0, other),
            exactly(name, "times that more waited than the limit says", 0, over),
            exactly(name, f"of {len(served)} requests of another key, refused", 0, refused),
            told(name, "server time of these", _milliseconds(served)),
        ]


def _milliseconds(seconds: list[float]) -> str:
    half, most, slowest = (1000 * percentile(seconds, part) for part in (0.5, 0.99, 1.0))
    return f"median {half:.1f} ms, p99 {most:.1f} ms, slowest {slowest:.0f} ms"


async def fairness(rounds: int) -> list[Figure]:
    """A job of 4 candidates comes while one of 2,048 is being drawn."""
    name = "fairness"
    beyond: list[int] = []
    waits: list[float] = []
    async with place() as here:
        await here.workers(2, slots=16, step_seconds=0.02)
        large = spec(num_samples=LARGE * rounds, heat_size=16)
        await here.queue.submit(large, cost=1)
        for number in range(rounds):
            await asyncio.sleep(1.0)
            small = spec(num_samples=4, seed=number)
            await here.queue.submit(small, cost=1)
            dealt = int(await here.queue.redis.hget(here.queue.keys("job", large.id), "next"))
            begun = time.monotonic()
            assert await ended(here.queue, small.id) is JobStatus.SUCCEEDED
            waits.append(time.monotonic() - begun)
            starts = [line.split() for file in here.notes.glob("*.heats") for line in file.read_text().splitlines()]
            mine = next(float(when) for when, job, _ in starts if job == small.id)
            first_after = [int(heat) for when, job, heat in starts if job == large.id and float(when) < mine]
            beyond.append(max(first_after) + 1 - dealt)
        await here.queue.cancel(large.id)
        left = await at_rest(here.queue)
    return [
        at_most(name, "heats of the large job begun before the small one, beyond those dealt", 1, max(beyond), "heats"),
        told(
            name, "time of the small job, median and slowest", f"{percentile(waits, 0.5):.2f} s and {max(waits):.2f} s"
        ),
        exactly(name, "gauges that are not 0 afterwards", 0, len(left)),
    ]


async def idempotency(rounds: int) -> list[Figure]:
    """50 posts with one key at once, the same again when the job is done, and another body with that key."""
    name = "idempotency"
    several = otherwise = changed = mismatched = 0
    async with place() as here:
        await here.workers(1, slots=16, step_seconds=0.01)
        api = await here.api()
        async with httpx.AsyncClient(base_url=api.url, timeout=30, limits=httpx.Limits(max_connections=None)) as http:
            for number in range(rounds):
                headers = {"Idempotency-Key": f"key {number}"}
                body = {"prompt": f"p {number}", "num_samples": 16}

                async def post(body: dict[str, object], headers: dict[str, str] = headers) -> httpx.Response:
                    return await http.post("/generate", json=body, headers=headers)

                answers = await asyncio.gather(*(post(body) for _ in range(50)))
                results = {json.dumps(answer.json(), sort_keys=True) for answer in answers}
                several += len({answer.json().get("id") for answer in answers}) != 1
                otherwise += sum(answer.status_code != 200 for answer in answers)
                again = await post(body)
                changed += {json.dumps(again.json(), sort_keys=True)} != results
                changed += again.headers.get("Idempotent-Replayed") != "true"
                refused = await asyncio.gather(*(post(body | {"seed": seed}) for seed in range(5)))
                mismatched += sum((a.status_code, a.json()["code"]) == (422, "idempotency_mismatch") for a in refused)
        jobs = len(await here.queue.redis.keys(f"{here.settings.namespace}:job:*:heats"))
    return [
        exactly(name, "rounds of 50 posts at once that made more than one job", 0, several),
        exactly(name, "jobs made in all", rounds, jobs),
        exactly(name, "posts answered otherwise than 200", 0, otherwise),
        exactly(name, "replays after completion that differ from the stored result", 0, changed),
        exactly(name, "other bodies with the same key that were refused with 422", 5 * rounds, mismatched),
    ]
