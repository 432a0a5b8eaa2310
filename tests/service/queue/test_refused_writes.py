"""A queue's server that takes no writes: said in plain words wherever it matters, waited for, and over by itself."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.queue import queue as findings
from bestofn.service.queue.embedded_server import LocalServer, embedded_binary
from bestofn.service.queue.job_queue import Queue
from tests.chaos.disks import Disk, small_disk
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
WORKER = Path(__file__).parents[2] / "chaos" / "engine.py"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        with small_disk(tmp_path / "disk") as mounted:
            yield mounted
    except OSError as error:
        pytest.skip(str(error))


def test_over_a_full_disk_nothing_is_accepted_and_nothing_is_lost(disk: Disk, serving: Serving, tmp_path: Path) -> None:
    with LocalServer(disk.folder / "data", embedded_binary()) as server:
        settings = Settings(redis_url=server.url)
        command = [sys.executable, "-P", str(WORKER), "fake", "4", "0.05", str(tmp_path)]
        environment = {**os.environ, "BESTOFN_REDIS_URL": server.url, "BESTOFN_HEARTBEAT_SECONDS": "1"}
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:

                def is_ready() -> bool:
                    return http.get("/readyz").is_success

                until(is_ready)
                body = {"prompt": "a star", "num_samples": 16, "num_inference_steps": 20, "seed": 3}
                job = http.post("/generate", json=body, headers={"Prefer": "respond-async"}).headers["location"]
                until(lambda: http.get(job).json()["status"] == "running")
                disk.fill()
                until(lambda: not is_ready())
                for answer in (http.get("/readyz"), http.post("/generate", json=body)):
                    assert answer.status_code == 503
                    assert "the disk of its server is full" in answer.json()["detail"]
                    assert int(answer.headers["retry-after"]) >= 1
                stuck = until(lambda: http.get(job).json()["warnings"])
                assert "disk of its server is full" in stuck[0]
                status = http.get("/status").json()
                assert (status["status"], status["refuses"] in stuck[0]) == ("not_accepting_jobs", True)
                told = http.get("/metrics").text
                assert "bestofn_redis_up 1.0" in told
                assert "bestofn_takes_jobs 0.0" in told
                assert "bestofn_ready 0.0" in told
                assert any("disk of its server is full" in found.found for found in findings(settings))
                time.sleep(1.0)  # the worker draws all that it holds, and can hand in nothing
                assert worker.poll() is None
                assert http.get(job).json()["status"] == "running"
                disk.free()
                until(is_ready)
                result = until(lambda: (now := http.get(job).json())["status"] != "running" and now)
                assert (result["status"], result["complete"], result["warnings"]) == ("succeeded", True, [])
                again = http.post("/generate", json=body).json()
                assert again["bracket"] == result["bracket"]
        finally:
            worker.kill()
            worker.wait()


def test_a_server_over_a_full_disk_is_not_started_and_says_why(disk: Disk) -> None:
    (disk.folder / "data").mkdir()
    disk.fill()
    with pytest.raises(SetupError, match="No space left on device"):
        LocalServer(disk.folder / "data", embedded_binary()).start()


def test_a_server_that_dies_over_a_full_disk_is_started_again(disk: Disk) -> None:
    with LocalServer(disk.folder / "data", embedded_binary()) as server, redis.Redis.from_url(server.url) as client:
        client.set("before", 1)
        disk.fill()
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            all(client.append("after", 1000 * "-") for _ in range(100))
        os.kill(client.info("server")["process_id"], signal.SIGKILL)

        def value() -> Any:
            server.restart()
            with contextlib.suppress(redis.ConnectionError):  # the one that dies still has the lock
                return client.get("before")

        assert until(value) == b"1"


def test_every_reason_has_its_words_and_is_over_when_it_is(tmp_path: Path) -> None:
    async def run(url: str) -> None:
        queue = await Queue.connect(Settings(redis_url=url))
        server = queue.redis

        async def refused(*command: str | int) -> str | None:
            await server.execute_command(*command)
            return await queue.refuses()

        assert await queue.refuses() is None
        assert "too few replicas" in str(await refused("CONFIG", "SET", "min-replicas-to-write", 1))
        assert await refused("CONFIG", "SET", "min-replicas-to-write", 0) is None
        assert "a replica" in str(await refused("REPLICAOF", "127.0.0.1", "1"))
        assert await refused("REPLICAOF", "NO", "ONE") is None
        assert "memory is nearly full" in str(await refused("CONFIG", "SET", "maxmemory", "1mb"))
        assert await queue.refuses(jobs=False) is None  # what runs goes on
        assert await refused("CONFIG", "SET", "maxmemory", 0) is None
        await server.config_set("save", "3600 1")
        (tmp_path / "queue" / "dump.rdb" / "in the way").mkdir(parents=True)
        await server.bgsave()
        while (reason := await queue.refuses()) is None:
            await asyncio.sleep(0.02)
        assert "could not save a snapshot" in reason
        assert await refused("CONFIG", "SET", "save", "") is None
        await queue.aclose()

    with LocalServer(tmp_path, embedded_binary()) as server:
        asyncio.run(asyncio.wait_for(run(server.url), PATIENCE))
