"""Sent images on their way to the judge: their files are decoded in a thread, while the device works."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from bestofn.service.core.jobs import Heat
from bestofn.service.engine.heat_state import Owner
from bestofn.service.engine.protocol import HeatFailed
from bestofn.service.media.codec import decode

WAIT_SECONDS = 0.05  # for the thread, while the device has nothing to do: then cancellations are looked at again


class SentImages:
    """Decodes the images of heats, one heat after the other and in the order of their admission."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._reading: dict[Owner, Future[dict[int, Tensor]]] = {}

    def add(self, owner: Owner, heat: Heat) -> None:
        """Start to decode the images of a heat."""
        self._reading[owner] = self._thread.submit(_decoded, heat.images)

    def drop(self, owner: Owner) -> None:
        """Forget a heat."""
        future = self._reading.pop(owner, None)
        if future is not None:
            future.cancel()

    def read(self, *, idle: bool) -> Iterator[tuple[Owner, dict[int, Tensor]] | HeatFailed]:
        """Heats whose images are decoded, (H, W, 3) uint8 by candidate, and those with one that cannot be.

        Args:
            idle: wait a moment for the next heat, because there is nothing else to do.
        """
        if idle and self._reading:
            wait([next(iter(self._reading.values()))], WAIT_SECONDS)
        for owner, future in list(self._reading.items()):
            if future.done():
                del self._reading[owner]
                try:
                    yield owner, future.result()
                except ValueError as error:
                    yield HeatFailed(*owner, str(error), final=True)
                except MemoryError:
                    yield HeatFailed(*owner, "decoding the sent images needs more memory than is free")


def _decoded(files: Mapping[int, bytes]) -> dict[int, Tensor]:
    return {index: torch.from_numpy(np.array(decode(data, f"images[{index}]"))) for index, data in files.items()}
