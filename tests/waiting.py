"""Waiting for an event, with a limit that a hang alone reaches: the speed of the machine decides no test."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 300.0  # seconds; below the `timeout` of a test in pyproject.toml, so that a wait fails by its own name
# Seconds of deadlines to try in turn, where a slow machine does too little before the first one.
DEADLINES = (1.0, 8.0, 64.0)

T = TypeVar("T")


def until(look: Callable[[], T]) -> T:
    """The first true value that `look` returns; fails after `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"{found!r} for {PATIENCE:.0f} s"
        time.sleep(0.02)
    return found
