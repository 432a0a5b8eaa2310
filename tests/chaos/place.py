"""A place to break things in: a queue's server of its own, workers and APIs as processes, all ended at the end."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disks import Disk, small_disk

from bestofn.service.api.key_file import Key, keys_file, sha256
from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.results import assemble
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.embedded_server import LocalServer, embedded_binary
from bestofn.service.queue.job_events import follow_entries
from bestofn.service.queue.job_queue import Queue

LEASE_SECONDS, BEAT_SECONDS = 2.0, 0.4
ENGINE = Path(__file__).parent / "engine.py"
PATIENCE_SECONDS = 300.0  # a limit that only a hang reaches


def servers() -> dict[str, Path]:
    """The queue servers that this machine has: as tests/conftest.py chooses them."""
    found = {"redis": shutil.which("redis-server"), "valkey": shutil.which("valkey-server") or embedded_binary()}
    return {name: Path(path) for name, path in found.items() if path is not None}


@dataclass
class Api:
    """An API process. `log` has a line of JSON for each request."""

    url: str
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    def requests(self) -> list[dict[str, Any]]:
        """What its log says of each request."""
        return _lines(self.log, "request")


@dataclass
class Place:
    """One namespace on one server, with the processes that were started for it."""

    folder: Path
    settings: Settings
    queue: Queue
    server: LocalServer
    _processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def disk(self) -> Disk:
        """That of the server's file."""
        return Disk(self.server.folder / "queue")

    @property
    def notes(self) -> Path:
        """The folder in which workers note what they start."""
        return self.folder

    def keys(self, *texts: str) -> None:
        """Lets those alone call who have one of these keys; before the API starts."""
        lines = (f"{Key(text, sha256(text))}\n" for text in texts)
        keys_file(self.settings).write_text("".join(lines))

    def worker(self, slots: int = 4, step_seconds: float = 0.05, kind: str = "fake") -> "subprocess.Popen[bytes]":
        """Starts a worker process with its own log."""
        command = [sys.executable, "-P", str(ENGINE), kind, str(slots), str(step_seconds), str(self.notes)]
        return self.start(command, self.folder / f"worker-{len(self._processes)}.log")

    async def workers(self, count: int, slots: int = 4, step_seconds: float = 0.05) -> list["subprocess.Popen[bytes]"]:
        """Starts workers and waits until they are warm."""
        crew = [self.worker(slots, step_seconds) for _ in range(count)]
        await self.warm(crew)
        return crew

    async def warm(self, crew: list["subprocess.Popen[bytes]"]) -> dict[int, WorkerInfo]:
        """The cards of these processes by their ids, once all are warm."""
        wanted = {process.pid for process in crew}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                workers = {info.pid: info for info in await self.queue.workers()}
                if wanted <= workers.keys():
                    return {pid: workers[pid] for pid in wanted}
                await asyncio.sleep(0.05)

    async def api(self, port: int = 0, descriptors: int | None = None, **settings: object) -> Api:
        """Starts an API process and waits until it answers; port 0 takes a free one. `descriptors`: limit of files."""
        log = self.folder / f"api-{len(self._processes)}.log"
        command = [sys.executable, "-P", "-m", "bestofn.cli", "serve", "--port", str(port)]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        process = self.start(command, log, settings)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (ready := _lines(log, "the API is ready")):
                if process.poll() is not None:
                    raise RuntimeError(f"the API has ended: {log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)
        url = str(ready[0]["address"])
        return Api(url, int(url.rpartition(":")[2]), log, process)

    def start(
        self, command: list[str], log: Path, settings: Mapping[str, object] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Starts a process with the settings of this place, and of its own; it writes to `log`."""
        given = {"log_format": "json", **self.settings.model_dump(exclude_unset=True), **(settings or {})}
        environment = {f"BESTOFN_{name.upper()}": _as_text(value) for name, value in given.items()}
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        self._processes.append(process)
        return process

    def end(self, process: "subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
        """Sends a signal to a process of ours, if it still runs."""
        if process.poll() is None:
            process.send_signal(number)

    def close(self) -> None:
        for process in self._processes:
            self.end(process)
        for process in self._processes:
            process.wait()


@contextlib.contextmanager
def server(name: str = "redis", megabytes: int | None = None) -> Iterator[LocalServer]:
    """A queue's server in a folder of its own, its append-only file on; the other one where this is not there.

    `megabytes`: the file is on a small disk of its own.
    """
    found = servers()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bestofn-chaos-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if megabytes is not None:
            stack.enter_context(small_disk(folder / "queue", megabytes))
        yield stack.enter_context(LocalServer(folder, found.get(name) or next(iter(found.values()))))


@contextlib.asynccontextmanager
async def place(name: str = "redis", megabytes: int | None = None, **settings: Any) -> AsyncIterator[Place]:
    """A server of that name with a lease of 2 s and a beat of 0.4 s, unless the settings say otherwise."""
    with server(name, megabytes) as on:
        folder = on.folder / "notes"
        folder.mkdir()
        given: dict[str, Any] = {
            "redis_url": on.url,
            "namespace": f"chaos-{uuid.uuid4().hex[:8]}",
            "data_dir": folder,
            "lease_seconds": LEASE_SECONDS,
            "heartbeat_seconds": BEAT_SECONDS,
        }
        given |= settings
        made = Settings(**given)
        queue = await Queue.connect(made)
        here = Place(folder, made, queue, on)
        try:
            yield here
        finally:
            here.close()
            await queue.aclose()


def spec(**fields: Any) -> JobSpec:
    """A job for the sleeping engine, with a new id."""
    engine = FakeEngine()
    defaults = {
        "id": uuid.uuid4().hex,
        "prompt": "a red star",
        "num_samples": 16,
        "seed": 7,
        "width": 32,
        "height": 32,
        "num_inference_steps": 4,
        "guidance_scale": 4.5,
        "heat_size": 4,
        "model": engine.model_info.revision,
        "judge": engine.judge_info.revision,
    }
    return JobSpec.model_validate(defaults | fields)


async def submitted(queue: Queue, **fields: Any) -> str:
    """The id of a job that has just been submitted, with the fields of `spec`."""
    job = spec(**fields)
    await queue.submit(job, cost=1)
    return job.id


async def ended(queue: Queue, job: str, seconds: float = PATIENCE_SECONDS) -> JobStatus:
    """The status in which a job ends; TimeoutError if it does not within so many seconds: it is lost."""
    async with asyncio.timeout(seconds):
        async for _ in follow_entries(queue, job):
            pass
    return (await queue.record(job)).status


async def started(queue: Queue, job: str) -> None:
    """Returns when a worker has taken the job's first heat."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await queue.record(job)).status is JobStatus.QUEUED:
            await asyncio.sleep(0.01)


async def answer(queue: Queue, job: str) -> tuple[object, ...]:
    """All of a result that must not depend on who worked: verdicts, bracket and the bytes of the winners."""
    record = await queue.record(job)
    result = assemble(record.spec, record.status, record.outcomes)
    images = [(image.seed, image.verdict, await queue.image(job, image.candidate)) for image in result.images]
    return images, result.bracket, result.candidates, result.status, result.complete


async def gauges(queue: Queue) -> dict[str, int]:
    """Everything of the queue that is 0 when nothing waits or runs, as far as it is not."""
    redis, keys = queue.redis, queue.keys
    found = {f"backlog {name.decode()}": int(value) for name, value in (await redis.hgetall(keys("backlog"))).items()}
    found |= {f"caller {name.decode()}": int(value) for name, value in (await redis.hgetall(keys("callers"))).items()}
    found["queued"] = await redis.zcard(keys("queued"))
    found["deadlines"] = await redis.zcard(keys("deadlines"))
    for pair in await redis.hkeys(keys("pairs")):
        for priority in ("interactive", "batch"):
            place = pair.decode(), priority
            found[f"dealt {priority}"] = int(await redis.get(keys("dispatched", *place)) or 0)
            found[f"ready {priority}"] = await redis.xlen(keys("ready", *place))
            found[f"ring {priority}"] = await redis.zcard(keys("ring", *place))
    return {name: value for name, value in found.items() if value}


async def at_rest(queue: Queue, seconds: float = 15.0) -> dict[str, int]:
    """The gauges once all are 0, or what they are after so many seconds."""
    end = time.monotonic() + seconds
    while (left := await gauges(queue)) and time.monotonic() < end:
        await asyncio.sleep(0.1)
    return left


def _lines(log: Path, event: str) -> list[dict[str, Any]]:
    """The JSON lines of a log with this `event`; a line that is still being written is left out."""
    lines = [json.loads(line) for line in log.read_text().split("\n")[:-1] if line.startswith("{")]
    return [line for line in lines if line.get("event") == event]


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
