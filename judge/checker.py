"""The image checker as an interface: images in, safe or unsafe out. Imports torch for its types alone.

It refuses unsafe images whatever the judge says of them. Letters: B images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from bestofn.judge.preprocess import ImageLike


class CheckFailed(Exception):
    """A checker gave no answer about an image, which is then neither safe nor unsafe."""


class ImageChecker(Protocol):
    """A checker of images; a subclass writes `ask` and `unsafe`, and `flops` if it computes here."""

    def ask(self, images: Sequence[ImageLike] | torch.Tensor) -> Iterable[Any]:
        """Start one forward over B images, as `PointwiseJudge.ask` takes them; returns B rows for `unsafe`."""
        ...

    def answered(self, row: Any) -> bool:
        """Whether `unsafe` of a row would not wait for another machine."""
        return True

    def unsafe(self, row: Any) -> bool:
        """Whether the image of a row is unsafe. Raises CheckFailed."""
        ...

    def flops(self) -> int:
        """Floating-point operations of one check (a multiply-add is two); 0: another machine computes."""
        return 0
