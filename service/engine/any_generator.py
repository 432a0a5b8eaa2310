"""What decoding, judging and evaluation need of a generator, be it of SANA or of another family."""

from typing import Protocol

import torch
from torch import Tensor

from bestofn.models.defaults import Defaults


class AnyGenerator(Protocol):
    """A generator on its device."""

    device: torch.device

    @property
    def defaults(self) -> Defaults:
        """Call defaults and limits."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of what `decode` takes for one image of this size in pixels."""
        ...

    def decode(self, latents: Tensor, *, stay: bool = False) -> Tensor:
        """(B, H, W, 3) uint8 of a batch, on the CPU unless they `stay`."""
        ...

    def release(self, part: str) -> bool:
        """Drop a part's weights from memory until it is needed again; returns whether it was there."""
        ...
