"""Secondary CUDA stream: decode and judge overlap denoising and wait for their inputs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
