"""A worker whose weights another process downloads: it waits for the whole of them, says so, and then draws."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bestofn.service.core.settings import Settings
from bestofn.service.engine.weights import missing_weights
from tests.hub import COMMIT, hub
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[3]
MODEL, JUDGE = "owner/SANA-test", "owner/NVILA-test"
PROGRAM = [sys.executable, "-P", "-m", "bestofn.cli"]
WAITS = {"status": "waiting for weights"}


@pytest.fixture
def environment(tmp_path: Path, queue_server: Path) -> dict[str, str]:
    named = {
        "BESTOFN_MODEL": f"{MODEL}@main",
        "BESTOFN_JUDGE": f"{JUDGE}@{COMMIT}",
        "BESTOFN_NAMESPACE": f"test-{tmp_path.name}",
    }
    here = {"BESTOFN_DATA_DIR": str(queue_server), "REDIS_URL": "", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    more = {"BESTOFN_METRICS_PORT": "0", "BESTOFN_METRICS_HOST": "127.0.0.1", "BESTOFN_LOG_FORMAT": "json"}
    return {**os.environ, **named, **here, **more, "BESTOFN_DEVICES": "cpu", "BESTOFN_THREADS": "1"}


def download(environment: dict[str, str], tmp_path: Path) -> None:
    """What the service `weights` does."""
    judge = tmp_path / "judge"  # its calibration does not hold under the hub's revision
    shutil.copytree(ROOT / "judge" / "weights" / "shapes", judge, ignore=shutil.ignore_patterns("calibration.json"))
    with hub({MODEL: ROOT / "models" / "weights" / "shapes", JUDGE: judge}) as address:
        online = {**environment, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        subprocess.run([*PROGRAM, "models", "download"], env=online, check=True, capture_output=True)


@contextmanager
def worker(
    environment: dict[str, str], log: Path, *program: str
) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], list[dict[str, Any]]]]]:
    """A worker process, and what its log has."""

    def lines() -> list[dict[str, Any]]:
        written = log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in written if line.startswith("{") and line.endswith("\n")]

    with log.open("wb") as stream:
        process = subprocess.Popen(program, env=environment, stdout=stream, stderr=stream)
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()


def port_of(lines: Callable[[], list[dict[str, Any]]]) -> str:
    (port,) = until(lambda: [line["port"] for line in lines() if line["event"] == "metrics"])
    return f"http://127.0.0.1:{port}"


def get(url: str) -> tuple[int, object]:
    answer = httpx.get(url, timeout=PATIENCE)
    return answer.status_code, answer.json()


def test_a_worker_waits_for_its_weights_and_then_draws(
    environment: dict[str, str], tmp_path: Path, queue_server: Path, serving: Callable[[Settings], Any]
) -> None:
    log = tmp_path / "worker.log"
    with worker(environment, log, *PROGRAM, "worker") as (process, lines):
        address = port_of(lines)
        until(lambda: get(f"{address}/readyz") == (503, WAITS))
        assert get(f"{address}/livez") == (200, WAITS)
        download(environment, tmp_path)
        until(lambda: process.poll() is not None or get(f"{address}/readyz") == (200, {"status": "ready"}))
        assert process.poll() is None, log.read_text()
        (said,) = [line for line in lines() if line["event"] == WAITS["status"]]
        assert said["missing"] == [f"{MODEL}@main", f"{JUDGE}@{COMMIT}"]
        with serving(Settings(data_dir=queue_server, redis_url=None, namespace=f"test-{tmp_path.name}")) as api:
            body = {"prompt": "a photo of a red circle", "num_samples": 1, "num_inference_steps": 2}
            answer = httpx.post(f"{api.url}/generate", json=body, timeout=PATIENCE)
        assert answer.json()["status"] == "succeeded"


def test_a_worker_that_waits_for_weights_ends_at_sigterm(environment: dict[str, str], tmp_path: Path) -> None:
    program = (
        "import sys; from bestofn.service.core.settings import load_settings;"
        "from bestofn.service.engine.fake import FakeEngine; from bestofn.service.worker import worker;"
        "from bestofn.service.telemetry import start; settings = load_settings(); start(settings, 'worker');"
        "worker.WEIGHTS_SECONDS, worker.WEIGHTS_LOG_SECONDS = 0.01, 0.05;"
        "sys.exit(worker.run_worker(settings, FakeEngine, lambda: ['owner/model']))"
    )
    with worker(environment, tmp_path / "log", sys.executable, "-P", "-c", program) as (process, lines):
        until(lambda: [line["event"] for line in lines()].count(WAITS["status"]) > 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_weights_are_missing_until_each_file_is_whole(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=f"{MODEL}@main", judge=f"{JUDGE}@{COMMIT}", second_judge="shapes")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert missing_weights(settings) == []  # it would download them
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert missing_weights(settings) == [settings.model, settings.judge]
    download(environment, tmp_path)
    assert missing_weights(settings) == []
    for file in sorted((tmp_path / "hub").glob("models--owner--SANA-test/snapshots/*/*/*")):
        away = file.rename(tmp_path / "away")  # a file of a download that was interrupted: no name yet
        assert missing_weights(settings) == [settings.model], file
        away.rename(file)
    assert missing_weights(settings) == []
