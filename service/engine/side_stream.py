"""The device's second queue: decoding and judging run beside the denoising, behind what they read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Beside:
    """Where decoding and judging are queued.

    On a GPU that is a stream of its own: the denoising does not wait for it, and its results are read a tick later, so
    that the host need not wait either. On a CPU, and where the weights take turns in memory, there is one queue.
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
