"""Clients that are cancelled or closed while calls run: every job they started is canceled, and callers see why."""

import asyncio
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bestofn.service.client.client import AsyncClient, Client
from bestofn.service.client.errors import ClientClosed
from bestofn.service.client.options import Options
from bestofn.service.core.errors import JobCanceled, Unavailable
from tests.waiting import PATIENCE

FORKING = """
import os, sys
from bestofn.service.client import Client
from bestofn.service.client.errors import ClientClosed

def child(client):
    client.close()
    try:
        client.models()
    except ClientClosed as error:
        return 0 if "fork" in str(error) else 1

def fork(progress):
    if not forked:
        forked.append(os.fork())
        if not forked[0]:
            os._exit(child(client))
        assert os.waitpid(forked[0], 0)[1] == 0

forked = []
with Client(sys.argv[1], timeout=float(sys.argv[2])) as client:
    client.generate("p", num_samples=8, on_progress=fork)
"""
LONG: Options = {"num_samples": 4096, "num_inference_steps": 100}  # minutes of the fake engine


def setting(event: asyncio.Event) -> Callable[[object], None]:
    return lambda _: event.set()


async def drawing(client: AsyncClient, keys: Sequence[str]) -> list[asyncio.Task[Any]]:
    """Calls that are under way, and one whose submission is not answered yet."""
    started = [asyncio.Event() for _ in keys]
    calls = [
        asyncio.create_task(client.generate("p", idempotency_key=key, on_progress=setting(event), **LONG))
        for key, event in zip(keys, started, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in started[:-1]))
    return calls


async def canceled(url: str, keys: Sequence[str]) -> None:
    async with AsyncClient(url, timeout=PATIENCE) as direct:
        for key in keys:
            with pytest.raises(JobCanceled):
                await direct.submit("p", idempotency_key=key, **LONG)


@pytest.fixture
def keys() -> tuple[str, ...]:
    """Idempotency keys of three jobs."""
    return tuple(uuid.uuid4().hex for _ in range(3))


async def test_generate_cancelled_among_others_raises_cancelled_error(served: Any, keys: Sequence[str]) -> None:
    """The others go on until the client is closed by the error that leaves its `async with`."""
    calls: list[asyncio.Task[Any]] = []

    async def gathered() -> None:
        async with AsyncClient(served.url, timeout=PATIENCE) as client:
            calls.extend(await drawing(client, keys))
            calls[0].cancel()
            await asyncio.gather(*calls)

    with pytest.raises(asyncio.CancelledError):
        await gathered()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, ClientClosed, ClientClosed]
    await canceled(served.url, keys)


async def test_generate_of_a_task_group_that_fails_cancels_every_job(served: Any, keys: Sequence[str]) -> None:
    async def grouped() -> None:
        async with AsyncClient(served.url, timeout=PATIENCE) as client, asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(client.generate("p", idempotency_key=key, **LONG))
            await asyncio.sleep(0.2)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as errors:
        await grouped()
    assert [type(error) for error in errors.value.exceptions] == [ZeroDivisionError]
    await canceled(served.url, keys)


def test_generate_in_a_loop_that_ends_cancels_every_job(served: Any, keys: Sequence[str]) -> None:
    """`asyncio.run` cancels all tasks at once, also that which closes the client."""

    async def main() -> None:
        async with AsyncClient(served.url, timeout=PATIENCE) as client:
            calls = await drawing(client, keys)
            asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
            await asyncio.gather(*calls)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    asyncio.run(canceled(served.url, keys))


async def test_aclose_within_a_callback_ends_its_own_call(served: Any, keys: Sequence[str]) -> None:
    client = AsyncClient(served.url, timeout=PATIENCE)
    with pytest.raises(ClientClosed):
        await client.generate("p", idempotency_key=keys[0], on_progress=lambda _: client.aclose(), **LONG)
    with pytest.raises(ClientClosed, match="make a new one"):
        await client.models()
    async with AsyncClient(served.url, timeout=PATIENCE) as direct:
        with pytest.raises(JobCanceled):
            await direct.submit("p", idempotency_key=keys[0], **LONG)


async def test_aclose_of_a_server_that_does_not_answer_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestofn.service.client.flows.LAST_WISH_SECONDS", 0.1)
    arrived = asyncio.Event()
    handlers: list[asyncio.Task[Any] | None] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        arrived.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = AsyncClient(address, timeout=PATIENCE)
        call = asyncio.create_task(client.generate("p"))
        await arrived.wait()
        async with asyncio.timeout(PATIENCE / 2):
            await client.aclose()
        with pytest.raises(ClientClosed):
            await call
        await asyncio.gather(*filter(None, handlers))


def test_close_in_another_thread_cancels_the_jobs_of_all_threads(served: Any, keys: Sequence[str]) -> None:
    client = Client(served.url, timeout=PATIENCE)
    started = [threading.Event() for _ in keys]
    outcomes: list[BaseException] = []

    def draw(key: str, event: threading.Event) -> None:
        try:
            client.generate("p", idempotency_key=key, on_progress=lambda _: event.set(), **LONG)
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=draw, args=pair) for pair in zip(keys, started, strict=True)]
    for thread in threads:
        thread.start()
    for event in started:
        assert event.wait(PATIENCE)
    client.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(outcomes) == len(keys)
    assert all(isinstance(error, ClientClosed | JobCanceled) for error in outcomes), outcomes
    asyncio.run(canceled(served.url, keys))
    with pytest.raises(ClientClosed):
        client.models()


def test_client_in_a_forked_process_says_so_and_cancels_nothing_of_the_other(served: Any) -> None:
    command = [sys.executable, "-P", "-c", FORKING, served.url, str(PATIENCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_async_client_in_a_second_event_loop_says_so() -> None:
    client = AsyncClient("http://127.0.0.1:9", retries=0)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        with pytest.raises(Unavailable):
            first.run(client.models())
        for call in (client.models(), client.aclose()):
            with pytest.raises(ClientClosed, match="another event loop"):
                second.run(call)
        first.run(client.aclose())
