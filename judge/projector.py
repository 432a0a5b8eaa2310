"""The projector of NVILA: neighbouring vision tokens become one, and its width becomes the language model's.

Letters: n tiles, T vision tokens, s side of a block, C width of the vision tower, D width of the language model.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from bestofn.judge.layout import PROJECTORS


class SpaceToChannel(nn.Module):
    """Gathers the s x s cells of each block of the token grid into one token, row by row, channels innermost.

    A grid that s does not divide is padded with zeros at the bottom and at the right. NVILA's first projector
    lists the blocks column by column (`transposed`); the later ones, called "fix", row by row.

    Args:
        s: side of a block.
        transposed: order of the blocks.
    """

    def __init__(self, s: int, transposed: bool = False) -> None:
        super().__init__()
        self.s = s
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:  # (n, T, C)
        n, T, C = x.shape
        s, side = self.s, math.isqrt(T)
        short = -side % s
        x = F.pad(x.reshape(n, side, side, C), (0, 0, 0, short, 0, short))
        blocks = (side + short) // s
        x = x.reshape(n, blocks, s, blocks, s, C)
        x = x.permute(0, 3, 1, 2, 4, 5) if self.transposed else x.permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, blocks * blocks, s * s * C)  # (n, T/s^2, s^2 C)


class Projector(nn.Module):
    """The multi-layer projector; `layers` has the published indices, so that weights load by name.

    Args:
        kind: `mm_projector_type` of `mm_projector/config.json`.
        C: width of the vision tower.
        D: width of the language model.

    Raises:
        ValueError: a kind this judge does not know.
    """

    def __init__(self, kind: str, C: int, D: int) -> None:
        super().__init__()
        if kind not in PROJECTORS:
            raise ValueError(f"mm_projector_type {kind!r} is not supported, only {', '.join(PROJECTORS)} are")
        self.kind = kind
        self.C = C
        self.s = 3 if kind == "mlp_downsample_3x3_fix" else 2
        down = SpaceToChannel(self.s, transposed=kind == "mlp_downsample")
        wide = self.s * self.s * C
        if self.s == 3:
            head = [nn.LayerNorm(wide), nn.Linear(wide, 3 * C), nn.GELU(), nn.LayerNorm(3 * C), nn.Linear(3 * C, D)]
        else:
            head = [nn.LayerNorm(wide), nn.Linear(wide, D)]
        self.layers = nn.Sequential(down, *head, nn.GELU(), nn.Linear(D, D))

    def tokens(self, T: int) -> int:
        """Number of projected tokens of a tile with T vision tokens."""
        return (-(-math.isqrt(T) // self.s)) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, C) features of the vision tower -> (n, T/s^2, D)."""
        projected: Tensor = self.layers(x)
        return projected
