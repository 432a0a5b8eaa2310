"""Tiles of images that are on a device already: PIL's resampling in integers, bit for bit, for a batch at once.

Letters: B images, H and W their sides, n tiles, S tile side, O output side, K taps of the filter.
"""

from functools import cache
from math import ceil

import torch
from torch import Tensor

from bestofn.judge.preprocess import ImageMode
from bestofn.kernels.transfer import uploaded

# Pillow, src/libImaging/Resample.c: weights are fixed-point numbers with these bits, sums are rounded after each pass.
PRECISION_BITS = 32 - 8 - 2
SUPPORT = 2.0  # radius of the bicubic filter in input pixels


def cut(mode: ImageMode, images: Tensor) -> Tensor:
    """`ImageMode.tiles` of images of one size.

    Args:
        images: (B, H, W, 3) uint8 on any device.

    Returns:
        (B * n, S, S, 3) uint8 on that device, the tiles of the first image first.
    """
    B, H, W, _ = images.shape
    columns, rows = mode.grid(W, H)
    S = mode.size
    stretched = resize(images, S * columns, S * rows)  # (B, rows * S, columns * S, 3)
    tiles = stretched.view(B, rows, S, columns, S, 3).transpose(2, 3).reshape(B, -1, S, S, 3)
    if columns * rows > 1:
        tiles = torch.cat([tiles, resize(images, S, S)[:, None]], dim=1)
    return tiles.reshape(-1, S, S, 3)


def resize(images: Tensor, width: int, height: int) -> Tensor:
    """``Image.resize((width, height))`` of Pillow, bicubic and antialiased: first along the rows, then the columns.

    Pillow 13 changes the order of the passes where the height shrinks much more than the width, which rounds
    differently. Earlier releases, which the published judge was made with, do not.

    Args:
        images: (B, H, W, 3) uint8.

    Returns:
        (B, height, width, 3) uint8.
    """
    _, H, W, _ = images.shape
    if width != W:
        images = _resample(images, 2, width)
    return images if height == H else _resample(images, 1, height)


def _resample(images: Tensor, axis: int, size: int) -> Tensor:
    """One pass along an axis of (B, H, W, 3)."""
    first, weights = (uploaded(part, images.device) for part in _taps(images.shape[axis], size))
    shape = [size if i == axis else 1 for i in range(4)]
    last = images.shape[axis] - 1
    total: Tensor | int = 1 << (PRECISION_BITS - 1)
    for tap, weight in enumerate(weights.unbind(1)):  # at most 30 bits each, like their sum
        there = (first + tap).clamp_(max=last)  # beyond the image the weight is 0
        total = total + images.index_select(axis, there).int() * weight.view(shape)
    assert isinstance(total, Tensor)
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)


@cache
def _taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """First input pixel (O,) of each output pixel and the weights (O, K) int32 from it on."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    first, weights = [], torch.zeros(size_out, 2 * ceil(support) + 1, dtype=torch.int32)
    for out in range(size_out):
        centre = (out + 0.5) * scale
        start, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size_in)
        row = [_bicubic((x - centre + 0.5) / stretch) for x in range(start, end)]
        total = sum(row)
        for tap, weight in enumerate(row):
            fixed = weight / total * (1 << PRECISION_BITS)
            weights[out, tap] = int(fixed - 0.5 if fixed < 0 else fixed + 0.5)
        first.append(start)
    return torch.tensor(first), weights


def _bicubic(x: float) -> float:
    """Keys' filter with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
