"""Gated depthwise 3x3 convolution on channels-last tokens: the middle of SANA's Mix-FFN.

B batch, N = height x width tokens, F hidden width (the input has 2F channels: value and gate).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bestofn.kernels.dispatch import fused


def _halved(hidden: Tensor, *_: object) -> Tensor:
    return hidden.new_empty(*hidden.shape[:2], hidden.shape[2] // 2)


def _flops(hidden: torch.Size, *_: object, **__: object) -> int:
    B, N, channels = hidden
    return 2 * 9 * B * N * channels


@fused(fake=_halved, flops=_flops)
def gated_depthwise(hidden: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    """``silu`` -> depthwise 3x3 -> gated linear unit (GLUMBConv, SANA, arXiv 2410.10629, section 2.2).

    With ``s = silu(hidden)`` laid out as an image and zero padding of one token at its borders::

        y[n, c] = bias[c] + sum over the 3x3 neighbours m of n: weight[c, 0, m - n] s[m, c]
        out[n, c] = y[n, c] * silu(y[n, F + c])        for c < F

    Args:
        hidden: (B, N, 2F) tokens in row-major order.
        weight: (2F, 1, 3, 3).
        bias: (2F,) or None.
        height, width: the token grid, height * width = N.

    Returns:
        (B, N, F) in the input's dtype.
    """
    image = F.silu(hidden).view(hidden.shape[0], height, width, -1)  # (B, h, w, 2F)
    mixed = F.conv2d(image.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0])  # (B, 2F, h, w)
    value, gate = mixed.permute(0, 2, 3, 1).flatten(1, 2).chunk(2, dim=-1)  # (B, N, F) twice
    return value * F.silu(gate)
