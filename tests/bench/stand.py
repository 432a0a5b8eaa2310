"""A stand to measure the queue on: its own server, workers and API as processes, all ended at the end."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bestofn.service.core.jobs import JobSpec, JobStatus
from bestofn.service.core.settings import Settings, load_settings
from bestofn.service.engine.fake import FakeEngine
from bestofn.service.queue.embedded_server import LocalServer
from bestofn.service.queue.job_events import follow_entries
from bestofn.service.queue.job_queue import Queue

PATIENCE_SECONDS = 120.0
SLEEPER = Path(__file__).parent / "sleeper.py"
PROGRAM = (sys.executable, "-P", "-m", "bestofn.cli")

Process = subprocess.Popen[bytes]


@dataclass
class Stand:
    """A queue, and the processes that were started on it."""

    folder: Path
    settings: Settings
    queue: Queue
    _running: list[Process] = field(default_factory=list)

    @property
    def notes(self) -> Path:
        """Where sleeping engines note when they are given a heat."""
        return self.folder / "admitted"

    async def sleepers(self, count: int, slots: int = 16, step_seconds: float = 0.0) -> list[Process]:
        """Starts workers with the sleeping engine, and waits until they are warm."""
        command = (sys.executable, "-P", str(SLEEPER), str(slots), str(step_seconds), str(self.notes))
        return await self._warm([self._start(command) for _ in range(count)])

    async def worker(self) -> Process:
        """Starts a worker with the true engine and the shapes checkpoint, and waits until it is warm."""
        return (await self._warm([self._start((*PROGRAM, "worker", "--model", "shapes", "--judge", "shapes"))]))[0]

    async def api(self) -> tuple[Process, str]:
        """Starts an API process; returns it and its address once it answers."""
        log = self.folder / "api.log"
        process = self._start((*PROGRAM, "serve", "--port", "0"), log, {"BESTOFN_LOG_FORMAT": "text"})
        async with asyncio.timeout(PATIENCE_SECONDS):
            while " http://" not in (text := log.read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"the API has ended: {text[-2000:]}")
                await asyncio.sleep(0.05)
        url = text.split("the API is at ")[1].split(",")[0]
        async with httpx.AsyncClient(timeout=30.0) as http:
            (await http.get(f"{url}/readyz")).raise_for_status()
        return process, url

    async def run(self, job: JobSpec) -> float:
        """Submits a job and waits until it has succeeded; returns the seconds it took."""
        begun = time.perf_counter()
        await self.queue.submit(job, cost=1)
        await self.ended(job.id)
        return time.perf_counter() - begun

    async def ended(self, job: str) -> None:
        """Returns when a job has succeeded."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for _ in follow_entries(self.queue, job):
                pass
        record = await self.queue.record(job)
        if record.status is not JobStatus.SUCCEEDED:
            raise RuntimeError(f"job {job} {record.status}: {record.error}")

    async def stop(self, *processes: Process) -> None:
        """Ends workers as an operator would, so that they take their cards down."""
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.wait)
            self._running.remove(process)

    def close(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()

    def _start(
        self, command: tuple[str, ...], log: Path | None = None, environment: dict[str, str] | None = None
    ) -> Process:
        own = {"BESTOFN_REDIS_URL": str(self.settings.redis_url), "BESTOFN_DATA_DIR": str(self.folder)}
        own |= {"BESTOFN_MAX_WAIT_SECONDS": "300"}  # a call lasts as long as its job
        own |= {"BESTOFN_LOG_LEVEL": "warning"} | (environment or {})
        with (log or self.folder / "workers.log").open("ab") as out:
            self._running.append(subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **own}))
        return self._running[-1]

    async def _warm(self, processes: list[Process]) -> list[Process]:
        wanted = {process.pid for process in processes}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not wanted <= {info.pid for info in await self.queue.workers()}:
                if any(process.poll() is not None for process in processes):
                    raise RuntimeError(f"a worker has ended: {(self.folder / 'workers.log').read_text()[-2000:]}")
                await asyncio.sleep(0.05)
        return processes


@contextlib.asynccontextmanager
async def stand() -> AsyncIterator[Stand]:
    """An empty queue with every setting at its default, except for the wait."""
    folder = Path(tempfile.mkdtemp(prefix="bestofn-bench-"))
    try:
        with LocalServer(folder) as server:
            settings = load_settings(redis_url=server.url, data_dir=folder)
            queue = await Queue.connect(settings)
            here = Stand(folder, settings, queue)
            try:
                yield here
            finally:
                here.close()
                await queue.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spec(**fields: Any) -> JobSpec:
    """A job for the sleeping engine, with a new id."""
    engine = FakeEngine()
    defaults = {
        "id": uuid.uuid4().hex[:24],
        "prompt": "a photo of a red star left of a blue circle",
        "num_samples": 16,
        "seed": 7,
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 4.5,
        "model": engine.model_info.revision,
        "judge": engine.judge_info.revision,
    }
    return JobSpec.model_validate(defaults | fields)
