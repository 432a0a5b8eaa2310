"""Batch pool: on a CPU one batch a core, each in a single thread; on a GPU one after the other."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchPool:
    """Runs independent batches side by side.

    Small operators gain almost nothing from a second thread. Whole batches in parallel use all cores, and their bits do
    not depend on the number of cores.
    """

    def __init__(self, count: int) -> None:
        """Run `count` batches in parallel; torch must then use a single thread for each."""
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="batch") if count > 1 else None

    def map(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items."""
        if self._pool is None or len(items) < 2:
            return [call(item) for item in items]
        return list(self._pool.map(call, items))
