"""Readiness of a worker process, which its supervisor learns through a pipe."""

import os

READY_DESCRIPTOR = "WORKER_READY_FD"
"""Environment variable with the number of the pipe's descriptor."""


def announce_ready() -> None:
    """Tell the supervisor, if there is one, that weights are loaded and the queue is served."""
    descriptor = os.environ.pop(READY_DESCRIPTOR, None)
    if descriptor is not None:
        os.write(int(descriptor), b"1")
        os.close(int(descriptor))
