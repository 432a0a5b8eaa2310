"""Batches at once: on a CPU one a core, each in a single thread; on a GPU one after the other."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cores:
    """Runs independent batches side by side.

    Small operators gain next to nothing from a second thread, and what one gains depends on how many there are; whole
    batches side by side use all cores, and their bits do not depend on how many there are.
    """

    def __init__(self, count: int) -> None:
        """`count` batches at once; torch must then use a single thread for each."""
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="batch") if count > 1 else None

    def map(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items."""
        if self._pool is None or len(items) < 2:
            return [call(item) for item in items]
        return list(self._pool.map(call, items))
