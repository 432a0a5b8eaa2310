"""A queue's server that answers, but not as usual: workers wait and go on, the API answers 503, nothing is lost."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.exceptions import ResponseError

from bestofn.service.core.jobs import JobStatus
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.connection_errors import NOT_HERE, NOT_NOW, REFUSED, away, moved, refused, why
from bestofn.service.queue.embedded_server import LocalServer, server_binary
from bestofn.service.queue.job_queue import Queue
from bestofn.service.worker.worker import Worker
from tests import network
from tests.waiting import PATIENCE, until

BODY = {"prompt": "a red star", "num_samples": 4}


@pytest.fixture
def server(server_program: Path) -> Iterator[LocalServer]:
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    try:
        with LocalServer(folder, server_program) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator["asyncio.Task[int]"]:
    task = asyncio.create_task(Worker(settings, lambda: FakeEngine(slots=4)).run())
    yield task
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0


@contextlib.contextmanager
def replica(client: "redis.Redis") -> Iterator[None]:
    client.replicaof("127.0.0.1", "1")
    yield
    client.replicaof("NO", "ONE")


@contextlib.contextmanager
def busy(client: "redis.Redis") -> Iterator[None]:
    client.config_set("busy-reply-threshold", 20)
    other = redis.Redis(connection_pool=client.connection_pool)

    def script() -> None:
        with contextlib.suppress(ResponseError):  # it is killed
            other.eval("while true do end", 0)

    thread = threading.Thread(target=script)
    thread.start()
    try:
        yield
    finally:
        until(lambda: killed(client))
        thread.join()


def killed(client: "redis.Redis") -> bool:
    with contextlib.suppress(ResponseError):
        client.script_kill()
        return True
    return False


@contextlib.contextmanager
def no_rights(client: "redis.Redis") -> Iterator[None]:
    client.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval", "-xreadgroup")
    yield
    client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize("state", [replica, busy, no_rights], ids=lambda state: state.__name__)
def test_a_server_in_another_state_ends_no_worker_and_is_a_503(
    server: LocalServer, state: Callable[..., Any], tmp_path: Path, serving: Any
) -> None:
    settings = Settings(redis_url=server.url, data_dir=tmp_path, heartbeat_seconds=0.2, lease_seconds=2.0)
    client = redis.Redis.from_url(server.url)

    def trouble(url: str) -> None:
        with state(client):
            time.sleep(1.0)  # some heartbeats and claims
            refused = httpx.post(f"{url}/generate", json=BODY, timeout=PATIENCE)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable"), refused.text
            assert refused.headers["Retry-After"]

    async def run(url: str) -> None:
        queue = await Queue.connect(settings)
        async with worker(settings) as task:
            async with asyncio.timeout(PATIENCE):
                while not await queue.workers():
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(trouble, url)
            assert not task.done()
            answer = await asyncio.to_thread(httpx.post, f"{url}/generate", json=BODY, timeout=PATIENCE)
            assert (answer.status_code, answer.json()["status"]) == (200, JobStatus.SUCCEEDED), answer.text
        await queue.aclose()

    with serving(settings) as api:
        asyncio.run(run(api.url))
    client.close()


TEXTS = (
    "{} of this server",
    "Command # 2 (SET x) of pipeline caused error: {} of this server",
    "ERR script: -{} x",
    "caused error: ('{} x',)",
)


@pytest.mark.parametrize("word", [*NOT_HERE, *NOT_NOW, *REFUSED])
@pytest.mark.parametrize("text", TEXTS)
def test_every_reply_of_the_table_is_waited_for(word: str, text: str) -> None:
    error = ResponseError(text.format(word))
    assert away(error)
    assert (moved(error), refused(error)) == (word in NOT_HERE, word in REFUSED)
    assert why(error).startswith("the queue ")


@pytest.mark.parametrize("text", ["ERR unknown command", "WRONGTYPE Operation", "NOSCRIPT No matching", "BUSYGROUP x"])
def test_replies_to_faults_of_ours_are_not_waited_for(text: str) -> None:
    assert not away(ResponseError(text))


@pytest.mark.skipif(not network.POSSIBLE, reason="needs root and iproute2")
def test_a_silent_network_ends_no_worker_and_keeps_it_answering(tmp_path: Path) -> None:
    """Packets vanish and nothing is reset; keep-alive then fails the socket that listens for canceled jobs."""
    with network.namespace() as space:
        if space is None:
            pytest.skip("no network namespaces here")
        options = ["--port", "7777", "--bind", space.there, "--protected-mode", "no", "--save", ""]
        process = subprocess.Popen([*space.prefix, server_binary(), *options], stdout=subprocess.DEVNULL)
        address = f"redis://{space.there}:7777"
        settings = Settings(redis_url=address, data_dir=tmp_path, heartbeat_seconds=0.2, metrics_port=0)
        try:
            asyncio.run(_silence(settings, space.link))
        finally:
            process.kill()
            process.wait()


async def _silence(settings: Settings, link: Callable[[bool], None]) -> None:
    async with worker(settings) as task:
        queue = Queue(str(settings.redis_url), settings)
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(redis.exceptions.RedisError):
                    if await queue.workers():
                        break
                await asyncio.sleep(0.1)
        link(False)
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(30.0)  # keep-alive fails the sockets after about 20 s
        assert time.process_time() - cpu < 0.5 * (time.monotonic() - began), "the worker's loop spins"
        assert not task.done()
        link(True)
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(redis.exceptions.RedisError):
                    if await queue.workers():
                        break
                await asyncio.sleep(0.1)
        await queue.aclose()
