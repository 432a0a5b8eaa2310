"""Work of a device: recorded as a CUDA graph, put on a secondary stream, and timed; on a CPU plain calls and clocks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import torch

from bestofn.service.engine.microbatch import out_of_memory
from bestofn.service.telemetry.metrics import UNRECORDED

log = structlog.get_logger()

Recorder = Callable[[Callable[[], object], torch.device, Any], Callable[[], object]]  # as `Recorded` is made


def plain(work: Callable[[], object], device: torch.device, pool: Any = None) -> Callable[[], object]:
    """Work that is called as it is, everywhere."""
    return work


class Recorded:
    """Calls work that reads and writes the same memory each time and returns nothing.

    On a GPU the first call runs plainly: kernels are built and memory is allocated. The second call is recorded as a
    CUDA graph. Every later call is one launch in place of hundreds. The work must not wait for the device.
    """

    def __init__(self, work: Callable[[], object], device: torch.device, pool: Any = None) -> None:
        """
        Args:
            pool: `torch.cuda.graph_pool_handle()` of graphs that share memory: none of them run concurrently, and their
                outputs are outside the pool.
        """
        self._work = work
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls_until_recording = 1 if device.type == "cuda" else -1  # negative: never

    def __call__(self) -> None:
        if self._calls_until_recording == 0:
            self._record()
        self._calls_until_recording -= 1
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()

    def _record(self) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            # Other threads of this process may well use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._work()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            UNRECORDED.inc()
            log.warning("a forward runs without a CUDA graph, slower", reason=str(error).splitlines()[0])
        else:
            self._graph = graph


class SideStream:
    """Stream of decoding and judging.

    On a GPU it is a second stream: denoising does not wait for it, and its results are read a tick later. On a CPU, and
    where weights take turns in memory, there is one stream.
    """

    def __init__(self, device: torch.device, *, one_queue: bool) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and not one_queue:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def late(self) -> bool:
        """Whether results are read a tick after their work was queued."""
        return self._stream is not None

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Work inside of it begins when all that was queued before is done."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield


class Clock:
    """Measures what runs inside its `with`. On a GPU that is only queued there, between two marks, and asking for the
    `seconds` waits for the second one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._marks: list[torch.cuda.Event] = []

    def __enter__(self) -> "Clock":
        self._started = time.perf_counter()
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()
        self._seconds = time.perf_counter() - self._started

    def _mark(self) -> None:
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self._marks[-1].record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Returns when the work is done, and its results may be read."""
        for mark in self._marks[-1:]:
            mark.synchronize()

    @property
    def seconds(self) -> float:
        self.wait()
        if self._marks:
            first, last = self._marks
            return float(first.elapsed_time(last)) / 1e3
        return self._seconds
