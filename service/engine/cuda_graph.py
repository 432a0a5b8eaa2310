"""Work that is done over and over on the same tensors: a CUDA graph on a GPU, a plain call elsewhere."""

from collections.abc import Callable
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
