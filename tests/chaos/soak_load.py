"""A mixed load: what callers ask for and how they behave, paced by the work that it makes."""

import asyncio
import collections
import contextlib
import itertools
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from place import spec
from soak_book import Book

import bestofn
from bestofn.models.shapes.world import COLOURS, SHAPES
from bestofn.service.core.deployments import Deployment, tflops

PROMPTS = [f"a photo of a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
SIZES = (1, 2, 4, 8, 16, 32, 64)
# What a caller does, and how often; "cancel" and "leave" end a part of their jobs early.
ACTS = {"poll": 25, "wait": 20, "image": 10, "follow": 10, "repeat": 10, "stream": 5, "cancel": 15, "leave": 5}
WAITING_SECONDS = 60.0  # of work at full capacity: when more waits, an arrival is left out
NOTICED_SECONDS = 30.0  # that a job's end may be noticed late on a busy machine
ASYNC = {"Prefer": "respond-async"}

REFUSED: tuple[tuple[int, dict[str, Any]], ...] = (
    (422, {"json": {"prompt": "p", "num_samples": 0}}),
    (422, {"json": {"prompt": "", "num_samples": 4}}),
    (422, {"json": {"prompt": "p", "n": 4}}),
    (422, {"json": {"prompt": "p", "model": "another"}}),
    (422, {"json": {"prompt": "p " * 999, "model": "shapes", "judge": "shapes"}}),
    (422, {"content": b'{"prompt": ', "headers": {"Content-Type": "application/json"}}),
    (415, {"content": b"prompt", "headers": {"Content-Type": "text/plain"}}),
    (413, {"content": b'"' + b"p" * 70_000 + b'"', "headers": {"Content-Type": "application/json"}}),
)


@dataclass(slots=True)
class Asked:
    """One arrival, and when it came."""

    act: str
    body: dict[str, Any]
    tflops: float
    since: float = 0.0


def arrivals(deployment: Deployment, rng: random.Random, acts: dict[str, int] = ACTS) -> Iterator[Asked]:
    """Requests of one pair without end, mixed in size and kind."""
    info = deployment.model
    while True:
        N, steps = rng.choice(SIZES), info.num_inference_steps
        side = info.width if rng.random() < 0.85 else 3 * info.width // 2
        body: dict[str, Any] = {
            "prompt": rng.choice(PROMPTS),
            "num_samples": N,
            "top_k": min(N, rng.choice((1, 1, 2))),
            "width": side,
            "height": side,
            "num_inference_steps": rng.choice((steps, steps, max(3, steps // 2))),
            "thumbnails": rng.random() < 0.2,
            "format": rng.choice(("png", "png", "webp", "jpeg")),
            "priority": rng.choice(("interactive", "interactive", "interactive", "batch")),
        }
        if N >= 8 and rng.random() < 0.25:
            body["draft"] = {"num_inference_steps": 2, "keep": 0.25}
        job = spec(**body, guidance_scale=info.guidance_scale, model=info.revision, judge=deployment.judge.revision)
        body |= {"model": info.revision.name, "judge": deployment.judge.revision.name}
        act = rng.choices(list(acts), list(acts.values()))[0]
        yield Asked(act, body, tflops(job, deployment))


@dataclass
class Load:
    """Callers of one pair."""

    http: httpx.AsyncClient
    client: bestofn.AsyncClient
    book: Book
    rng: random.Random
    done: "collections.Counter[str]" = field(default_factory=collections.Counter)
    odd: "collections.Counter[str]" = field(default_factory=collections.Counter)
    left_out: int = 0
    offered: float = 0.0  # TFLOP
    waiting: float = 0.0  # TFLOP
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def capacity(self, asked: Iterator[Asked], callers: int, seconds: float) -> float:
        """TFLOP a second that the pair's workers do when so many callers each submit, wait and submit again."""

        async def caller() -> None:
            while time.monotonic() < until:
                await self._tried(next(asked))

        until = time.monotonic() + seconds
        running = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.sleep(seconds / 4)
        since, before = time.monotonic(), self.book.work
        await asyncio.sleep(until - time.monotonic())
        measured = (self.book.work - before) / (time.monotonic() - since)
        await asyncio.gather(*running)
        return measured

    async def arrive(self, asked: Iterator[Asked], speed: float, bound: float, until: float) -> None:
        """Lets requests arrive, `speed` TFLOP of them a second, at random moments; leaves out those that come while
        more than `bound` TFLOP wait."""
        due = time.monotonic()
        for one in asked:
            due += one.tflops / speed * self.rng.expovariate(1.0)
            if due > until:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.offered += one.tflops
            if self.waiting > bound:
                self.left_out += 1
                continue
            task = asyncio.create_task(self._tried(one))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def refused(self, pause: float, until: float) -> None:
        """Sends bodies that are refused, one after the other."""
        for status, request in itertools.cycle(REFUSED):
            if time.monotonic() >= until:
                return
            answer = await self.http.post("/generate", **request)
            self.done["refused"] += 1
            self._expect(answer, status)
            await asyncio.sleep(pause)

    async def drained(self, seconds: float) -> int:
        """Waits for all callers, at most so long; returns how many still wait."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return len(self._tasks)

    async def _tried(self, asked: Asked) -> None:
        act: Callable[[Asked], Coroutine[Any, Any, None]] = getattr(self, f"_{asked.act}")
        self.waiting += asked.tflops
        asked.since = time.monotonic()
        try:
            await act(asked)
            self.done[asked.act] += 1
        except Exception as error:
            self.odd[f"{asked.act}: {error!r}"[:200]] += 1
        finally:
            self.waiting -= asked.tflops

    async def _kept(self, url: str, ended: float) -> httpx.Response | None:
        """What is kept of a job that has ended then; None if it is no more, and need not be."""
        answer = await self.http.get(url)
        kept = self.book.here.settings.result_ttl_seconds - NOTICED_SECONDS
        if answer.status_code == 410 and time.monotonic() - ended > kept:
            self.done["came too late"] += 1
            return None
        return answer if self._expect(answer, 200) else None

    def _expect(self, answer: httpx.Response, *statuses: int) -> bool:
        if answer.status_code in statuses:
            return True
        self.odd[f"{answer.request.method} {answer.status_code}: {answer.text}"[:200]] += 1
        return False

    async def _submitted(self, asked: Asked, **headers: str) -> str | None:
        answer = await self.http.post("/generate", json=asked.body, headers=ASYNC | headers)
        return _job(answer) if self._expect(answer, 200, 202) else None

    async def _poll(self, asked: Asked) -> None:
        """Comes back for the result, the winner and a small image."""
        job = await self._submitted(asked)
        if job is None:
            return
        await self.book.until_end(job, asked.tflops, asked.since)
        ended = time.monotonic()
        answer = await self._kept(f"/jobs/{job}", ended)
        if answer is None:
            return
        result = answer.json()
        urls = [image["url"] for image in result["images"]]
        urls += [one["thumbnail"] for one in result["candidates"][:2] if one.get("thumbnail")]
        for url in urls:
            await self._kept(url, ended)

    async def _wait(self, asked: Asked) -> None:
        answer = await self.http.post("/generate", json=asked.body)
        if self._expect(answer, 200, 202):
            await self.book.until_end(_job(answer), asked.tflops, asked.since)

    async def _image(self, asked: Asked) -> None:
        """Asks for the winner's bytes; a 504 names the job when that takes too long."""
        body = {name: value for name, value in asked.body.items() if name != "format"}
        answer = await self.http.post("/generate", json=body, headers={"Accept": "image/png"})
        if self._expect(answer, 200, 504):
            self.done["image too late"] += not answer.is_success
            await self.book.until_end(_job(answer), asked.tflops, asked.since)

    async def _follow(self, asked: Asked) -> None:
        """Follows the job's events; every third one leaves and comes back."""
        options = {name: value for name, value in asked.body.items() if name != "prompt"}
        job = (await self.client.submit(asked.body["prompt"], **options)).id
        if self.rng.random() < 1 / 3:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.rng.uniform(0.1, 3.0)):
                    await _last(self.client.events(job))
        last = await _last(self.client.events(job))
        if last != "result":
            self.odd[f"stream ends with {last}"] += 1
        await self.book.until_end(job, asked.tflops, asked.since)

    async def _stream(self, asked: Asked) -> None:
        """Has the events as the answer to its request."""
        headers = {"Accept": "text/event-stream"}
        async with self.http.stream("POST", "/generate", json=asked.body, headers=headers) as answer:
            events = [line async for line in answer.aiter_lines() if line.startswith("event:")]
        if events[-1:] != ["event: result"]:
            self.odd[f"stream ends with {events[-1:]}"] += 1
        await self.book.until_end(_job(answer), asked.tflops, asked.since)

    async def _repeat(self, asked: Asked) -> None:
        """Sends the request three times with one key: twice at once, and when it is done."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        job, other = await asyncio.gather(*(self._submitted(asked, **key) for _ in range(2)))
        if job is None or other is None:
            return
        if job != other:
            self.odd["one key, two jobs"] += 1
        await self.book.until_end(job, asked.tflops, asked.since)
        if await self._submitted(asked, **key) not in (job, None):
            self.odd["one key, two jobs"] += 1

    async def _cancel(self, asked: Asked) -> None:
        job = await self._submitted(asked)
        if job is None:
            return
        end = asyncio.create_task(self.book.until_end(job, asked.tflops, asked.since))
        await asyncio.sleep(self.rng.random() * (statistics.median(self.book.seconds) if self.book.seconds else 1.0))
        self._expect(await self.http.delete(f"/jobs/{job}"), 200)
        await end

    async def _leave(self, asked: Asked) -> None:
        """Hangs up while it waits, and asks what has become of the job; every other one wants it canceled then."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        wanted = "wait=30, cancel-on-disconnect" if self.rng.random() < 0.5 else "wait=30"
        patience = httpx.Timeout(10.0, read=self.rng.uniform(0.3, 2.0))
        async with httpx.AsyncClient(base_url=self.http.base_url, timeout=patience) as hasty:
            with contextlib.suppress(httpx.ReadTimeout):
                await hasty.post("/generate", json=asked.body, headers={"Prefer": wanted} | key)
        await asyncio.sleep(1.0)
        answer = await self.http.post("/generate", json=asked.body, headers=ASYNC | key)
        canceled = not answer.is_success and answer.json().get("code") == "job_canceled"
        if canceled or self._expect(answer, 200, 202):
            await self.book.until_end(_job(answer), asked.tflops, asked.since)


def _job(answer: httpx.Response) -> str:
    return answer.headers["Location"].rpartition("/")[2]


async def _last(events: AsyncIterator[Any]) -> str | None:
    last = None
    async for event in events:
        last = event.type
    return last
