"""Block-wise 8-bit numbers: an optimizer's moments in a quarter of the bytes.

n numbers in blocks of `BLOCK`, the last one shorter. A block stores its largest magnitude s (float32) and a signed code
c (int8) for each number. The value of a code is ``s * (c / 127) * |c / 127|``. Zero has its own code. Codes are denser
towards zero, where most numbers of a moment are. A number x comes back to within ``sqrt(s * |x|) / 127 + s / 64516``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bestofn.kernels.dispatch import fused

BLOCK = 256
LEVELS = 127


def blocks(n: int) -> int:
    """Blocks that n numbers take."""
    return -(-n // BLOCK)


def _pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(blocks(x.numel()), dtype=torch.float32)


def _wide(codes: Tensor, scales: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


def _averaged(x: Tensor, codes: Tensor, scales: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float32), *_pair(x)


@fused(fake=_pair)
def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers::

        s = max |x| over a block
        c = sign(x) * floor(127 * sqrt(|x| / s) + 1/2)

    Args:
        x: contiguous, any shape, n numbers; one that is not finite makes its whole block so.

    Returns:
        Codes in x's shape, int8, and scales (blocks,), float32.
    """
    n = x.numel()
    rows = F.pad(x.float().flatten(), (0, -n % BLOCK)).view(blocks(n), BLOCK)
    scales = rows.abs().amax(1)
    share = rows.abs() / torch.where(scales == 0, 1.0, scales)[:, None]
    codes = rows.sign() * (LEVELS * share.sqrt() + 0.5).floor()
    return codes.nan_to_num(0).to(torch.int8).flatten()[:n].view(x.shape), scales


@fused(fake=_wide)
def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """The numbers that codes and scales stand for, float32 in the codes' shape; inverse of `quantise` to rounding."""
    n = codes.numel()
    rows = F.pad(codes.flatten(), (0, -n % BLOCK)).view(blocks(n), BLOCK).float() / LEVELS
    return (scales[:, None] * (rows * rows.abs())).flatten()[:n].view(codes.shape)


@fused(fake=_averaged)
def quantised_average(x: Tensor, codes: Tensor, scales: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """A running mean that is kept in codes, in one pass::

        m = beta * dequantise(codes, scales) + (1 - beta) * x

    Args:
        x: contiguous, any shape.
        codes, scales: the mean so far, coded; zeros at the start.
        beta: how much of it stays.

    Returns:
        m before rounding, float32, its codes, and its scales.
    """
    mean = dequantise(codes, scales).mul_(beta).add_(x, alpha=1 - beta)
    return mean, *quantise(mean)
