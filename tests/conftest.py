"""Fixtures of the suite: queue servers of this session's own, and APIs over them. Each test has its own namespace.

torch reads the settings of threads at its import: threads that wait must sleep, or two busy processes stop each other.
Property tests have no time limit, because a busy machine exceeds any.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import hypothesis
import pytest
import redis
import structlog
import uvicorn

from bestofn.service.api.app import create_app
from bestofn.service.api.key_file import Key, sha256
from bestofn.service.api.server import BACKLOG, address_of, listen, server_config
from bestofn.service.core.jobs import Heat, HeatOutcome, JobSpec
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.protocol import HeatFinished
from bestofn.service.queue.consumer import QueueConsumer
from bestofn.service.queue.embedded_server import LocalServer, embedded_binary
from bestofn.service.queue.job_queue import Queue
from tests.waiting import PATIENCE, until

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ThreadingHTTPServer.request_queue_size = 128  # 5 would make a starved machine reset connections
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: two a core, since half of a process's time is spent on waiting."""
    return min(2 * (os.cpu_count() or 1), 8)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutine tests run on asyncio, as the service does."""
    return "asyncio"


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", params=["redis", "valkey"])
def server_program(request: pytest.FixtureRequest) -> Path:
    """A Redis and a Valkey, each from PATH; the embedded Valkey if PATH has none."""
    found = _server_program(request.param)
    if found is None:
        pytest.skip(f"no {request.param}-server here")
    return found


def _server_program(kind: str) -> Path | None:
    found = shutil.which(f"{kind}-server")
    return Path(found) if found else embedded_binary() if kind == "valkey" else None


def limited(url: str) -> str:
    """The server's address for a user with the rights that docker/make-secrets gives API and workers, and four more."""
    rights = re.search(r"^user bestofn on \S+ (.+)$", (ROOT / "docker/make-secrets").read_text(), re.MULTILINE)
    assert rights is not None
    own = ["~test-*", "&test-*", "+keys", "+config|set", "+client|list", "+client|kill"]  # which tests use
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "bestofn", "on", ">test", *rights[1].split(), *own)
    return url.replace("://", "://bestofn:test@")


@pytest.fixture(scope="session")
def redis_url(server_program: Path) -> Iterator[str]:
    """The address of a server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    try:
        with LocalServer(folder, server_program) as server:
            yield limited(server.url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Short times, and keys that no other test has. Tests of engines that hang set `stall_seconds` themselves."""
    return Settings(
        redis_url=redis_url,
        namespace=f"test-{uuid.uuid4().hex[:8]}",
        data_dir=tmp_path,
        lease_seconds=3.0,
        heartbeat_seconds=0.5,
        stall_seconds=PATIENCE,
        max_wait_seconds=PATIENCE,
    )


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Takes back what a command that ran in this process has set up for its lines of the log."""
    yield
    root = logging.getLogger()
    ours = [h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter)]
    if ours:
        root.removeHandler(ours[0])
        logging.captureWarnings(False)
        structlog.reset_defaults()


class Served(NamedTuple):
    """An API that listens, with the settings it was made with."""

    url: str
    settings: Settings


@contextlib.contextmanager
def _serving(settings: Settings) -> Iterator[Served]:
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(create_app(settings), settings.trusted_proxies))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        listening.listen(BACKLOG)  # as `serve` does: beyond its queue, a starved machine resets connections
        yield Served(address_of(listening), settings)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def serving() -> Callable[[Settings], contextlib.AbstractContextManager[Served]]:
    """Starts an API in a thread: `with serving(settings) as served`."""
    return _serving


@pytest.fixture(scope="session")
def queue_server() -> Iterator[Path]:
    """The data folder of a queue server for the API's tests: Redis, else Valkey."""
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    try:
        with LocalServer(folder, _server_program("redis") or _server_program("valkey")) as server:
            (folder / "queue.address").write_text(limited(server.url))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def served(queue_server: Path) -> Iterator[Served]:
    """An API over a queue with one worker process, whose engine is the fake one: 16 slots, 10 ms a tick."""
    program = (
        "import sys; from bestofn.service.engine.fake import FakeEngine;"
        "from bestofn.service.core.settings import Settings;"
        "from bestofn.service.worker.worker import run_worker;"
        "sys.exit(run_worker(Settings(heartbeat_seconds=1.0), lambda: FakeEngine(slots=16, step_seconds=0.01)))"
    )
    environment = {**os.environ, "BESTOFN_DATA_DIR": str(queue_server), "REDIS_URL": ""}
    worker = subprocess.Popen([sys.executable, "-P", "-c", program], env=environment, stdout=subprocess.DEVNULL)
    try:
        with _serving(Settings(data_dir=queue_server, redis_url=None, max_wait_seconds=PATIENCE)) as api:
            until(lambda: httpx.get(f"{api.url}/readyz", timeout=PATIENCE).is_success)
            yield api
    finally:
        worker.kill()  # not asked: one that waits for a queue would go on waiting
        worker.wait()


@pytest.fixture
def idle(queue_server: Path, open_lane: Callable[..., Awaitable[QueueConsumer]]) -> Settings:
    """Settings of a namespace whose only worker never claims: every job that is submitted there waits."""
    settings = Settings(data_dir=queue_server, redis_url=None, namespace=f"test-{uuid.uuid4().hex[:8]}")

    async def announce() -> None:
        queue = await Queue.connect(settings)
        lane = await open_lane(queue)
        await lane.store_tokenizers(FakeEngine().tokenizer_files)
        await queue.aclose()

    asyncio.run(announce())
    return settings


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process, where it is loaded already, in an empty folder."""

    from bestofn.cli import main

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        for name, value in (
            {"REDIS_URL": "", "BESTOFN_DATA_DIR": str(tmp_path), "COLUMNS": "100"} | environment
        ).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["bestofn", *arguments])
        with pytest.raises(SystemExit) as end:
            main.app()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """The setting of a file with these keys, each of the caller of the same name: `keys("k1", "k2")`."""

    def write(*texts: str) -> dict[str, Path]:
        file = tmp_path / "keys"
        file.write_text("".join(f"{Key(text, sha256(text))}\n" for text in texts))
        return {"keys_file": file}

    return write


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    """A job for the fake engine, with a new id; any field can be given."""
    engine = FakeEngine()

    def make(**fields: object) -> JobSpec:
        defaults: dict[str, object] = {
            "id": uuid.uuid4().hex,
            "prompt": "a red star",
            "num_samples": 8,
            "seed": 7,
            "width": 32,
            "height": 32,
            "num_inference_steps": 2,
            "guidance_scale": 4.5,
            "heat_size": 4,
            "model": engine.model_info.revision,
            "judge": engine.judge_info.revision,
        }
        return JobSpec.model_validate(defaults | fields)

    return make


@pytest.fixture
def finish() -> Callable[[Heat], HeatOutcome]:
    """What the fake engine makes of a heat, at once."""

    def run(heat: Heat) -> HeatOutcome:
        engine = FakeEngine(slots=16)
        engine.admit(heat)
        while True:
            for event in engine.tick():
                if isinstance(event, HeatFinished):
                    return event.outcome

    return run


@pytest.fixture
def open_lane() -> Callable[..., Awaitable[QueueConsumer]]:
    """A worker's place at the queue, announced for an hour."""

    async def lane(queue: Queue, name: str = "one", capacity: int = 4) -> QueueConsumer:
        engine = FakeEngine(slots=capacity)
        info = WorkerInfo(
            worker=name,
            host="here",
            pid=1,
            device="none",
            capacity=capacity,
            model=engine.model_info,
            judge=engine.judge_info,
            started_at=0.0,
        )
        opened = QueueConsumer(queue, info)
        await opened.heartbeat((), 3600.0)
        return opened

    return lane
