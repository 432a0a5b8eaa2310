"""Turns of callers on the event loop: of one key's long steps, only one runs between two steps of the others."""

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """A lock for each caller. A step under it should end or let the loop go on within a few milliseconds."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, caller: str) -> asyncio.Lock:
        """The lock of this caller; "" are all callers without a key. Waiting tasks get it in their order."""
        return self._locks.setdefault(caller, asyncio.Lock())
