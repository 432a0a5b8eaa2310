"""Winners' images in a folder: the same images, gone with their jobs; and what a full folder does."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.core.settings import Settings
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.leftovers import sweep
from tests.chaos.disks import Disk, small_disk
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
WORKER = Path(__file__).parents[2] / "chaos" / "engine.py"
BODY = {"prompt": "a star", "num_samples": 16, "top_k": 3, "seed": 3}

pytestmark = pytest.mark.parametrize("server_program", ["valkey"], indirect=True)


@contextmanager
def service(settings: Settings, serving: Serving, notes: Path) -> Iterator[tuple[httpx.Client, Any]]:
    """An API and a worker process of 4 slots and 50 ms a tick, both ready."""
    told = {"redis_url": settings.redis_url, "namespace": settings.namespace, "images_dir": settings.images_dir}
    environment = os.environ | {f"BESTOFN_{name.upper()}": str(value) for name, value in told.items() if value}
    command = [sys.executable, "-P", str(WORKER), "fake", "4", "0.05", str(notes)]
    worker = subprocess.Popen(command, env=environment | {"BESTOFN_HEARTBEAT_SECONDS": "1"}, stdout=subprocess.DEVNULL)
    try:
        with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
            until(lambda: http.get("/readyz").is_success)
            yield http, worker
    finally:
        worker.kill()
        worker.wait()


def images_of(http: httpx.Client, result: Any) -> list[bytes]:
    return [http.get(image["url"]).raise_for_status().content for image in result["images"]]


def test_images_in_a_folder_are_the_same_and_go_with_their_job(
    settings: Settings, serving: Serving, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with service(settings.model_copy(update={"images_dir": folder}), serving, tmp_path) as (http, _):
        apart = http.post("/generate", json=BODY).json()
        assert http.get("/status").json()["queue"]["image_bytes"] < 100  # references
        files = list((folder / f"queue-{settings.namespace}" / apart["id"]).iterdir())
        own = images_of(http, apart)
        assert len(own) == 3
        assert set(own) <= {file.read_bytes() for file in files}
        with serving(settings) as elsewhere:
            lost = httpx.get(f"{elsewhere.url}{apart['images'][0]['url']}", timeout=PATIENCE)
            assert (lost.status_code, "BESTOFN_IMAGES_DIR" in lost.json()["detail"]) == (404, True)
            within = httpx.post(f"{elsewhere.url}/generate", json=BODY, timeout=PATIENCE).json()
        assert images_of(http, within) == own

        async def swept(forgotten: str) -> list[str]:
            queue = await Queue.connect(settings.model_copy(update={"images_dir": folder}))
            await queue.redis.delete(queue.keys("job", forgotten))
            await sweep(queue)
            left = await queue.images.jobs(age=-60)
            await queue.aclose()
            return left

        for job in (apart, within):
            os.utime(folder / f"queue-{settings.namespace}" / job["id"], (0, 0))
        assert asyncio.run(swept(apart["id"])) == [within["id"]]


def test_a_folder_without_the_images_of_earlier_jobs_takes_no_job(
    settings: Settings, serving: Serving, tmp_path: Path
) -> None:
    folder, bare = tmp_path / "images", tmp_path / "bare"
    folder.mkdir()
    bare.mkdir()
    with service(settings.model_copy(update={"images_dir": folder}), serving, tmp_path) as (http, worker):
        earlier = http.post("/generate", json=BODY).json()
        with serving(settings.model_copy(update={"images_dir": bare})) as elsewhere:
            for answer in (
                httpx.get(f"{elsewhere.url}/readyz", timeout=PATIENCE),
                httpx.post(f"{elsewhere.url}/generate", json=BODY, timeout=PATIENCE),
            ):
                assert answer.status_code == 503
                assert f"{bare} cannot be used (it does not have the images of earlier jobs" in answer.json()["detail"]
        folder.rename(tmp_path / "away")  # as a disk that is unmounted while the worker runs
        folder.mkdir()
        assert "mount its disk" in http.get("/readyz").json()["detail"]
        folder.rmdir()
        (tmp_path / "away").rename(folder)
        until(lambda: http.get("/readyz").is_success)
        assert len(images_of(http, earlier)) == len(images_of(http, http.post("/generate", json=BODY).json())) == 3
        assert worker.poll() is None


def test_canceled_job_has_no_images_in_the_folder_any_more(
    settings: Settings, serving: Serving, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with service(settings.model_copy(update={"images_dir": folder}), serving, tmp_path) as (http, _):
        many = BODY | {"num_samples": 4096}
        job = http.post("/generate", json=many, headers={"Prefer": "respond-async"}).json()["id"]
        until(lambda: any(folder.glob(f"*/{job}/*")))
        drawn = next(folder.glob(f"*/{job}/*"))
        assert http.delete(f"/jobs/{job}").json()["status"] == "canceled"
        assert not drawn.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        with small_disk(tmp_path / "disk", 96) as mounted:
            yield mounted
    except OSError as error:
        pytest.skip(str(error))


def test_a_full_folder_fails_the_job_at_once_and_nothing_else(
    settings: Settings, serving: Serving, tmp_path: Path, disk: Disk
) -> None:
    own = settings.model_copy(update={"images_dir": disk.folder})
    with service(own, serving, tmp_path) as (http, worker):

        def submit(**fields: Any) -> str:
            body = BODY | {"num_inference_steps": 20} | fields
            return http.post("/generate", json=body, headers={"Prefer": "respond-async"}).headers["location"]

        job, later = submit(num_samples=4096), submit(priority="batch", num_samples=4)
        until(lambda: http.get(job).json()["status"] == "running")
        disk.fill()
        failed = until(lambda: (found := http.get(job).json())["status"] == "failed" and found)
        assert failed["error"] == "the images folder is full (No space left on device)"
        for answer in (http.get("/readyz"), http.post("/generate", json=BODY)):
            assert answer.status_code == 503
            assert "disk is full" in answer.json()["detail"]
        assert "is full" in until(lambda: http.get(later).json()["warnings"])[0]
        time.sleep(1.0)
        assert (worker.poll(), http.get(later).json()["status"]) == (None, "queued")
        disk.free()
        until(lambda: http.get("/readyz").is_success)
        done = until(lambda: (now := http.get(later).json())["status"] not in ("queued", "running") and now)
        assert (done["status"], len(images_of(http, done))) == ("succeeded", 3)
