"""Hosts whose clocks differ: workers far ahead or behind, and a clock that is set while a job runs."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.core.settings import Settings
from tests import clocks
from tests.service.api.test_api_keys import bearer
from tests.waiting import PATIENCE, until

HOURS = 7200.0
BODY = {"prompt": "a red star", "num_samples": 16, "top_k": 2}
PROGRAM = """
import select, sys, time
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.worker.worker import run_worker
time.sleep = lambda seconds: select.select((), (), (), seconds)  # libfaketime breaks that of Python
sys.exit(run_worker(Settings.model_validate_json(sys.argv[1]), lambda: FakeEngine(slots=4, step_seconds=0.02)))
"""
OLD_FILES = """
import asyncio, sys
from bestofn.service.core.settings import Settings
from bestofn.service.queue.job_queue import Queue

async def run():
    queue = await Queue.connect(Settings.model_validate_json(sys.argv[1]))
    await queue.images.put("3f9a", "one", {0: b"image"})
    print(await queue.images.jobs(), await queue.images.jobs(age=-60))

asyncio.run(run())
"""

pytestmark = [
    pytest.mark.parametrize("server_program", ["redis"], indirect=True),
    pytest.mark.skipif(clocks.LIBRARY is None, reason=clocks.REASON),
]


def command(program: str, settings: Settings) -> list[str]:
    return [sys.executable, "-P", "-c", program, settings.model_dump_json(exclude_defaults=True)]


@pytest.fixture
def clock(tmp_path: Path) -> clocks.Clock:
    return clocks.Clock(tmp_path)


@pytest.fixture
def worker(settings: Settings, clock: clocks.Clock) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command(PROGRAM, settings), env=clock.environment)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("ahead", [HOURS, -HOURS])
def test_worker_with_another_clock_draws_as_others_do(
    ahead: float,
    clock: clocks.Clock,
    worker: Any,
    settings: Settings,
    serving: Callable[[Settings], AbstractContextManager[Any]],
    keys: Any,
) -> None:
    clock.set(ahead)
    with serving(settings.model_copy(update=keys("ali"))) as api, httpx.Client(base_url=api.url, timeout=300) as http:
        until(lambda: http.get("/readyz").is_success)
        [known] = http.get("/status", headers=bearer("ali")).json()["workers"]
        assert abs(known["since"] - time.time()) < PATIENCE, "it is the queue's clock"
        job = http.post("/generate", json=BODY, headers=bearer("ali") | {"Prefer": "respond-async"}).json()
        until(lambda: http.get(f"/jobs/{job['id']}", headers=bearer("ali")).json()["status"] == "running")
        clock.set(-ahead)
        answer = until(lambda: _ended(http, job["id"]))
        assert (answer["status"], answer["warnings"]) == ("succeeded", [])
        assert all(http.get(image["url"]).status_code == 200 for image in answer["images"])


def _ended(http: httpx.Client, job: str) -> Any:
    answer = http.get(f"/jobs/{job}", headers=bearer("ali")).json()
    return answer if answer["status"] not in ("queued", "running") else None


def test_files_by_a_clock_that_is_ahead_are_not_old(clock: clocks.Clock, settings: Settings, tmp_path: Path) -> None:
    """Files of images that were just sent have no job yet: a sweep that took them for old would delete them."""
    clock.set(HOURS)
    apart = settings.model_copy(update={"images_dir": tmp_path})
    found = subprocess.run(command(OLD_FILES, apart), env=clock.environment, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("[] ['3f9a']\n", "")


def test_signed_address_holds_at_an_api_whose_clock_is_ahead(
    clock: clocks.Clock,
    worker: Any,
    settings: Settings,
    serving: Callable[[Settings], AbstractContextManager[Any]],
    keys: Any,
) -> None:
    known = settings.model_copy(update=keys("ali"))
    clock.set(3 * HOURS)
    with serving(known) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
        until(lambda: http.get("/readyz").is_success)
        job = http.post("/generate", json=BODY, headers=bearer("ali")).json()
        path = job["images"][0]["url"]
        serve = [sys.executable, "-P", "-c", SERVE, known.model_dump_json(exclude_defaults=True)]
        with subprocess.Popen(serve, env=clock.environment, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            answer = httpx.get(f"{other.stdout.readline().strip()}{path}", timeout=PATIENCE)
            other.kill()
        assert (answer.status_code, answer.content) == (200, http.get(path).content)


SERVE = """
import sys, uvicorn
from bestofn.service.api.app import create_app
from bestofn.service.api.server import BACKLOG, address_of, listen, server_config
from bestofn.service.core.settings import Settings
settings = Settings.model_validate_json(sys.argv[1])
listening = listen("127.0.0.1", 0)
listening.listen(BACKLOG)
print(address_of(listening), flush=True)
uvicorn.Server(server_config(create_app(settings), settings.trusted_proxies)).run(sockets=[listening])
"""
