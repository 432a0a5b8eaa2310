"""A real browser, and the API it talks to: over a queue with one worker, whose engine sleeps or has real weights."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from bestofn.service.api.app import create_app
from bestofn.service.api.key_file import Key, sha256
from bestofn.service.api.server import address_of, listen
from bestofn.service.core.settings import Settings
from bestofn.service.queue.embedded_server import LocalServer
from tests.waiting import PATIENCE, until

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OWN = ("http://127.0.0.1:", "blob:", "data:")
# 4 candidates every 80 ms: a job of 16 is over at once, one of 256 takes five seconds.
WORKER = """
import sys
import time
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.engine.protocol import Judged
from bestofn.service.core.settings import Settings
from bestofn.service.worker.worker import run_worker

settings = Settings(heartbeat_seconds=1.0, stall_seconds=3600)
hold = settings.data_dir / "hold"

def limit_now():
    try:
        return hold.stat().st_mtime_ns, int(hold.read_text())
    except FileNotFoundError:
        return None, None

class Held(FakeEngine):
    judged = 0  # since there is this limit
    limit = None

    def tick(self):
        while True:
            limit, most = limit_now()
            if limit != self.limit:
                self.limit, self.judged = limit, 0
            if most is None or self.judged < most:
                break
            time.sleep(0.02)
        events = super().tick()
        self.judged += sum(isinstance(event, Judged) for event in events)
        return events

engine = Held(slots=4, step_seconds=0.02, second_judge="second" in sys.argv)
sys.exit(run_worker(settings, lambda: engine))
"""


class Hold:
    """Halts the worker in the middle of a job, so that a test can look at the page there."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "hold"

    def after(self, candidates: int) -> None:
        """Halt the worker when it has judged this many candidates of the next job."""
        new = self._file.with_suffix(".new")
        new.write_text(str(candidates))
        new.rename(self._file)

    def end(self) -> None:
        """Let the worker go on."""
        self._file.unlink(missing_ok=True)


class Api:
    """An API that can be stopped and started again at the same address."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._port = 0
        self.start()

    def start(self) -> None:
        self._listening = listen("127.0.0.1", self._port)
        self.url = address_of(self._listening)
        self._port = self._listening.getsockname()[1]
        config = uvicorn.Config(create_app(self.settings), log_config=None, lifespan="on", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()


@contextlib.contextmanager
def queue_and_worker(*worker: str, **environment: str) -> Iterator[Path]:
    """The data folder of a queue with a worker, as `working`."""
    folder = Path(tempfile.mkdtemp(prefix="bestofn-test-"))
    try:
        with LocalServer(folder), working(folder, *worker, **environment):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def working(folder: Path, *worker: str, **environment: str) -> Iterator[None]:
    """A worker of the queue in this data folder, which this program of Python's is."""
    own = {"BESTOFN_DATA_DIR": str(folder), "REDIS_URL": "", "BESTOFN_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", *worker], env={**os.environ, **own, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()  # a supervisor's children would outlive its being killed
        process.wait()


@contextlib.contextmanager
def ready_api(folder: Path) -> Iterator[Api]:
    served = Api(Settings(data_dir=folder, redis_url=None))
    try:
        until(lambda: httpx.get(f"{served.url}/readyz", timeout=PATIENCE).is_success)
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """The data folder of a queue with a warm worker, whose engine sleeps."""
    with queue_and_worker("-c", WORKER) as folder:
        yield folder


@pytest.fixture
def hold(data_dir: Path) -> Iterator[Hold]:
    """Halts the worker of `api`."""
    held = Hold(data_dir)
    yield held
    held.end()


@pytest.fixture(scope="session")
def api(data_dir: Path) -> Iterator[Api]:
    with ready_api(data_dir) as served:
        yield served


@pytest.fixture(scope="session")
def shapes_api(chromium: str) -> Iterator[Api]:
    """An API over a worker with the shipped weights."""
    with queue_and_worker("-m", "bestofn.cli", "worker") as folder, ready_api(folder) as served:
        yield served


@pytest.fixture(scope="session")
def keyed_api(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The same service behind a key, which is `sesame`."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{Key('ali', sha256('sesame'))}\n")
    served = Api(api.settings.model_copy(update={"keys_file": file}))
    yield served
    served.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's chromium, or any other on the PATH; playwright brings none along."""
    if os.environ.get("CI"):
        pytest.skip("the page is tested in a browser on developers' machines, not in CI")
    pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[page]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no chromium on the PATH")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str):
    """A browser for one module: while playwright's event loop runs in a thread, `asyncio.run` is refused there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser, api: Api):
    """A page of a new visitor, who must neither see an error on the console nor make it call another server."""
    with visit(browser, api) as opened:
        yield opened


@pytest.fixture
def shapes_page(browser, shapes_api: Api):
    """The same where images are drawn."""
    with visit(browser, shapes_api) as opened:
        yield opened


@contextlib.contextmanager
def visit(browser, api: Api):
    context = browser.new_context(base_url=api.url, viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
    opened.on("console", lambda said: wrong.append(said.text) if _is_error(said) else None)
    opened.on("request", lambda call: None if call.url.startswith(OWN) else wrong.append(call.url))
    yield opened
    context.close()
    assert not wrong, wrong


def _is_error(said) -> bool:
    # The browser notes each refused call, which the page then explains; those are no errors of the page.
    return said.type in ("error", "warning") and "Failed to load resource" not in said.text
