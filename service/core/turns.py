"""Fairness among callers: each has turns of its own, so that the work of one keeps the others waiting little."""

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """Turns of each caller's steps, of which `count` run at a time. Waiting tasks get them in their order."""

    def __init__(self, count: int = 1) -> None:
        self._count = count
        self._callers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, caller: str) -> asyncio.Semaphore:
        """The turns of this caller; "" are all callers without a key."""
        return self._callers.setdefault(caller, asyncio.Semaphore(self._count))
