"""Seconds of a device's work, for the usage of jobs."""

import time
from types import TracebackType

import torch


class Clock:
    """Measures what runs inside its `with`, the device's queue included; `seconds` holds the result."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    def __enter__(self) -> "Clock":
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._device.type == "cuda" and error is None:
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._started
