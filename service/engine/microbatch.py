"""Micro-batches: work in batches of a pinned size, halved for good where memory does not suffice."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch

from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.telemetry.metrics import OUT_OF_MEMORY

Item = TypeVar("Item")
Result = TypeVar("Result")
Shape = TypeVar("Shape", bound=Hashable)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is a failed allocation; torch's own on a CPU is a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class MicroBatches(Generic[Item, Result, Shape]):
    """Runs a stage over any number of items in batches.

    Args:
        stage: name of the stage, for messages.
        forward: returns the results of a batch, one an item.
        size: maximum batch for items of a shape.
        batch_pool: pool of parallel batches.
        make_room: frees memory where one item does not fit; returns whether it did, and thus whether to try again.
        pinned: pad every batch to its size with copies of its first item. A kernel may round differently for another
            batch size. Padding costs time and has no other effect.
    """

    def __init__(
        self,
        stage: str,
        forward: Callable[[Sequence[Item]], Sequence[Result]],
        size: Callable[[Shape], int],
        batch_pool: BatchPool,
        make_room: Callable[[], bool],
        *,
        pinned: bool,
    ) -> None:
        self.stage = stage
        self.pinned = pinned
        self._forward = forward
        self._size = size
        self._cores = batch_pool
        self._make_room = make_room
        self._sizes: dict[Shape, int] = {}
        self._shrunk: set[Shape] = set()

    def size(self, shape: Shape) -> int:
        """The batch size for items of this shape, as far as memory sufficed until now."""
        if shape not in self._sizes:
            self._sizes[shape] = max(1, self._size(shape))
        return self._sizes[shape]

    def shrunk(self, shape: Shape) -> str | None:
        """A sentence for the user, if batches of this shape had to shrink."""
        if shape not in self._shrunk:
            return None
        return shrunk_batches(self.stage, str(self.size(shape)), max(1, self._size(shape)))

    def run(self, items: Sequence[Item], shape: Shape) -> list[Result | None]:
        """The results in order; None for an item that does not fit into memory even alone.

        Args:
            items: all of one shape.
            shape: what the batch size depends on.
        """
        results: list[Result | None] = [None] * len(items)
        waiting = list(range(len(items)))
        while waiting:
            size = self.size(shape)
            batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]
            waiting = []
            tried = self._cores.map(partial(self._try, items, size), batches)
            for batch, done in zip(batches, tried, strict=True):
                if done is None:
                    waiting += batch
                else:
                    for place, result in zip(batch, done, strict=False):
                        results[place] = result
            if waiting and size == 1 and not self._make_room():
                break
            if waiting and size > 1:
                # The failed calls' tensors are gone only now that their tracebacks are.
                release_cache()
                self._sizes[shape] = size // 2
                self._shrunk.add(shape)
        return results

    def _try(self, items: Sequence[Item], size: int, batch: Sequence[int]) -> Sequence[Result] | None:
        """The results of a batch, those of padding last; None if it does not fit into memory."""
        padding = size - len(batch) if self.pinned else 0
        try:
            return self._forward([items[place] for place in batch] + [items[batch[0]]] * padding)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            OUT_OF_MEMORY.labels(self.stage).inc()
            return None


def shrunk_batches(stage: str, now: str, before: int) -> str:
    """A sentence for the user about batches that had to shrink."""
    return (
        f"{stage} ran in batches of {now} instead of {before} for lack of memory, so images may differ in their last "
        "bits from those of another run"
    )


def release_cache() -> None:
    """Gives memory that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
