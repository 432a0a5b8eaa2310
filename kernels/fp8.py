"""Rows of 8-bit floats, each with a scale of its own: operands of FP8 matrix products.

R rows of K numbers.
"""

import torch
from torch import Tensor

from bestofn.kernels.dispatch import fused

FP8_DTYPE = torch.float8_e4m3fn
GREATEST = float(torch.finfo(FP8_DTYPE).max)  # 448
LEAST_SCALE = float(torch.finfo(torch.float32).tiny)  # scale of a row of zeros


def _pair(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=FP8_DTYPE), x.new_empty(x.shape[0], 1, dtype=torch.float32)


@fused(fake=_pair)
def quantize_fp8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale = max |x| / 448`` over a row, and ``x / scale``: each row's greatest number becomes 448.

    Args:
        x: (R, K), contiguous.

    Returns:
        (R, K) float8 (e4m3) and the rows' scales, (R, 1) float32.
    """
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / GREATEST).clamp_min_(LEAST_SCALE)
    return (x.float() / scale).to(FP8_DTYPE), scale
