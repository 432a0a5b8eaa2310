"""Limits of one key's calls: what is refused, what is counted, and how many connections to Redis it takes."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from bestofn.service.api.rate_limit import AT_END, WORKED_ON, OpenCalls
from bestofn.service.core.errors import TooManyCalls
from bestofn.service.core.settings import Settings
from bestofn.service.queue.connection import MAX_CONNECTIONS
from bestofn.service.queue.job_queue import Queue
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
EVENTS = {"Accept": "text/event-stream"}
REQUEST = {"prompt": "a ring", "num_samples": 4}


@contextmanager
def caller(url: str, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, timeout=PATIENCE, headers=headers) as client:
        yield client


def test_open_calls_of_a_key_beyond_the_limit_are_refused(
    idle: Settings, serving: Serving, keys: Callable[..., dict[str, Path]]
) -> None:
    settings = idle.model_copy(update={"max_open_calls_per_key": 2, **keys("greedy", "other")})
    with serving(settings) as api, caller(api.url, "greedy") as greedy, caller(api.url, "other") as other:
        job = greedy.post("/generate", json=REQUEST, headers={"Prefer": "respond-async"}).json()["id"]
        with ExitStack() as stack:
            for _ in range(2):
                stream = stack.enter_context(greedy.stream("GET", f"/jobs/{job}/events"))
                assert stream.status_code == 200
            jobs = other.get("/status").json()["queue"]["queued"]
            refused = [
                greedy.get(f"/jobs/{job}/events"),
                greedy.get(f"/jobs/{job}", headers={"Prefer": "wait=60"}),
                greedy.post("/generate", json=REQUEST),
                greedy.post("/generate", json=REQUEST, headers=EVENTS),
            ]
            for answer in refused:
                assert answer.headers["content-type"] == "application/problem+json"
                assert (answer.status_code, answer.json()["code"]) == (429, "too_many_calls")
                assert answer.headers["retry-after"] == "1"
            theirs = greedy.post("/v1/images/generations", json={"prompt": "a ring"})
            assert (theirs.status_code, theirs.headers["retry-after"]) == (429, "1")
            assert theirs.json()["error"].items() >= {"type": "rate_limit_error", "code": "too_many_calls"}.items()
            assert greedy.get(f"/jobs/{job}").status_code == 200
            status = other.get("/status").json()
            assert status["queue"]["queued"] == jobs  # what is refused leaves no job
            assert status["limits"]["max_open_calls_per_key"] == 2
            assert (status["calls"]["event_streams"], status["calls"]["waiting_calls"]) == (2, 0)
            assert status["calls"]["refused_calls"] == 5
            with other.stream("POST", "/generate", json=REQUEST, headers=EVENTS) as stream:
                assert stream.status_code == 200
        until(lambda: other.get("/status").json()["calls"]["event_streams"] == 0)
        assert greedy.get(f"/jobs/{job}", headers={"Prefer": "wait=1"}).status_code == 200


def test_monitoring_is_answered_while_other_calls_are_refused(idle: Settings, serving: Serving) -> None:
    with serving(idle.model_copy(update={"max_open_calls_per_key": 1})) as api, ExitStack() as stack:
        place = urlsplit(api.url)
        for _ in range(2):  # as many as may be in progress: their bodies never come
            slow = stack.enter_context(socket.create_connection((place.hostname, place.port), PATIENCE))
            head = ("POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9")
            slow.sendall("\r\n".join((*head, "", "")).encode())
        http = stack.enter_context(httpx.Client(base_url=api.url, timeout=PATIENCE))
        until(lambda: http.get("/v1/models").status_code == 429)
        assert [http.get(path).status_code for path in ("/status", "/metrics", "/readyz")] == [200] * 3


async def test_waits_and_streams_share_one_blocking_read(idle: Settings, serving: Serving) -> None:
    number = 60
    queue = await Queue.connect(idle)
    others = len(await queue.redis.client_list())  # of the session's other processes
    with serving(idle.model_copy(update={"max_wait_seconds": PATIENCE})) as api:
        async with httpx.AsyncClient(base_url=api.url, timeout=PATIENCE, limits=httpx.Limits()) as http:

            async def follow(job: str) -> str:
                return (await http.get(f"/jobs/{job}/events")).text

            async def wait(job: str) -> str:
                return str(
                    (await http.get(f"/jobs/{job}", headers={"Prefer": f"wait={PATIENCE:.0f}"})).json()["status"]
                )

            async def submit() -> str:
                answer = await http.post("/generate", json=REQUEST, headers={"Prefer": "respond-async"})
                return str(answer.json()["id"])

            jobs = [await submit() for _ in range(number)]
            waits = [asyncio.create_task(wait(job)) for job in jobs]
            streams = [asyncio.create_task(follow(job)) for job in jobs]
            while True:
                calls = (await http.get("/status")).json()["calls"]
                if (calls["waiting_calls"], calls["event_streams"]) == (number, number):
                    break
                await asyncio.sleep(0.05)
            clients = await queue.redis.client_list()
            await queue.aclose()
            assert sum("b" in client["flags"] and client["cmd"] == "xread" for client in clients) <= 1
            assert len(clients) <= others + MAX_CONNECTIONS + 2
            for job in jobs:
                await http.delete(f"/jobs/{job}")
            assert await asyncio.gather(*waits) == ["canceled"] * number
            assert all("job_canceled" in text for text in await asyncio.gather(*streams))


async def test_calls_of_a_key_take_turns_and_waits_give_theirs_up() -> None:
    calls = OpenCalls(limit=100, connections=1000)
    working: set[int] = set()
    most = 0

    async def call(number: int, *, wait: bool) -> None:
        nonlocal most
        scope: dict[str, Any] = {"caller": "greedy"}
        with ExitStack() as scope[AT_END]:
            calls.admit(scope)
            await calls.take_turn(scope)
            working.add(number)
            most = max(most, len(working))
            await asyncio.sleep(0)
            working.remove(number)
            if wait:
                calls.enter(scope, "wait")
                await ended.wait()

    ended = asyncio.Event()
    tasks = [asyncio.create_task(call(number, wait=number < 50)) for number in range(100)]
    await asyncio.gather(*tasks[50:])
    assert (most, calls.count("wait")) == (WORKED_ON, 50)
    ended.set()
    await asyncio.gather(*tasks)
    assert calls.count("wait") == 0


def test_calls_in_progress_are_refused_at_twice_the_limit_or_half_the_connections() -> None:
    for limit, connections, most in ((10, 1000, 20), (256, 100, 50)):
        calls = OpenCalls(limit, connections)
        greedy: dict[str, Any] = {"caller": "greedy"}
        with ExitStack() as greedy[AT_END]:
            for _ in range(most):
                calls.admit(greedy)
            with pytest.raises(TooManyCalls, match=f"{most} calls of this key") as refusal:
                calls.admit(greedy)
            assert refusal.value.retry_after
            other: dict[str, Any] = {"caller": "other"}
            with ExitStack() as other[AT_END]:
                calls.admit(other)
        with ExitStack() as greedy[AT_END]:
            calls.admit(greedy)
        assert calls.refused == 1
