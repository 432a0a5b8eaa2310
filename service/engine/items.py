"""What passes through the stages after denoising: latents, decoded and sent images, and batches in work."""

from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Heat
from bestofn.service.engine.heat_state import Owner, Small
from bestofn.service.engine.protocol import HeatFailed
from bestofn.service.engine.scheduler import Size
from bestofn.service.engine.timing import Clock
from bestofn.service.media.codec import decode

WAIT_SECONDS = 0.05  # for the thread that decodes, while the device is idle: then cancellations are looked at again

Item = TypeVar("Item", "Latent", "Image")
What = TypeVar("What")
Result = TypeVar("Result")


class BatchKey(NamedTuple):
    """Key of a judge's batch: size of the images, whether they are drafts (one tile), number of the judge.

    Sent images are of any size: `size` is that of the grid of tiles which the judge cuts from them.
    """

    size: Size
    draft: bool = False
    judge: int = 0
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Latent:
    """A finished latent (C, h, w) that waits to be decoded."""

    owner: Owner
    candidate: int
    latent: Tensor
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded image (H, W, 3) uint8 that waits for its verdict: on the device, or on the host if it was sent.

    `first` is the first judge's, where it waits for the second's. `small` is the image to show, with the seconds of
    making it. `sent`: it was not drawn.
    """

    owner: Owner
    candidate: int
    pixels: Tensor
    prompt: str
    draft: bool = False
    first: Verdict | None = None
    small: Future[Small] | None = None
    sent: bool = False


class Decoded(NamedTuple):
    """An image on the device and, where a small one is shown, on the host.

    `checks` is the bool[2] of its batch row: whether the latent is finite, and whether the image shows anything.
    """

    pixels: Tensor
    copy: Tensor | None
    checks: Tensor


@dataclass(slots=True)
class Queued(Generic[Item, Result, What]):
    """Work that the device was given for some items. When its clock has stopped, the results may be read: each item's
    image or row of the judge, None where memory did not suffice."""

    items: list[Item]
    results: list[Result | None]
    clock: Clock
    what: What

    def read(self) -> Iterator[tuple[Item, Result | None]]:
        self.clock.wait()
        return zip(self.items, self.results, strict=True)

    def since(self, place: int, owners: Container[Owner]) -> "Queued[Item, Result, What]":
        """What there is from a place on, of these owners."""
        kept = [i for i, item in enumerate(self.items) if i >= place and item.owner in owners]
        return replace(self, items=[self.items[i] for i in kept], results=[self.results[i] for i in kept])

    def drop(self, owner: Owner) -> None:
        kept = [i for i, item in enumerate(self.items) if item.owner != owner]
        self.items, self.results = [self.items[i] for i in kept], [self.results[i] for i in kept]


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


def too_large(doing: str, size: Size) -> str:
    """The reason to fail a heat of which not even one image fits."""
    return f"{doing} one image of {size[0]}x{size[1]} pixels needs more memory than is free: ask for a smaller one"


def _decoded(files: Mapping[int, bytes]) -> dict[int, Tensor]:
    return {index: torch.from_numpy(np.array(decode(data, f"images[{index}]"))) for index, data in files.items()}
