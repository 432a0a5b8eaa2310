"""Seconds of a device's work, for the usage of jobs."""

import time

import torch


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
