"""Rows of 8-bit floats: a row is read once, and its codes are written in the same pass.

R rows of K numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestofn.kernels.fp8 import FP8_DTYPE, GREATEST, LEAST_SCALE
from bestofn.kernels.fused.rows import row_launch


@triton.jit
def quantize_fp8_rowwise_kernel(
    x,  # (R, K)
    codes,  # out (R, K) float8
    scales,  # out (R,) float32
    K,
    GREATEST: tl.constexpr,
    LEAST_SCALE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BLOCK_D)
    m_k = o_k < K
    b_x = tl.load(x + i_row * K + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_scale = tl.maximum(tl.max(tl.abs(b_x), 0) / GREATEST, LEAST_SCALE)
    tl.store(codes + i_row * K + o_k, (b_x / b_scale).to(codes.dtype.element_ty), mask=m_k)
    tl.store(scales + i_row, b_scale)


def quantize_fp8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `bestofn.kernels.fp8.quantize_fp8_rowwise`."""
    x = x.contiguous()
    R, K = x.shape
    codes = torch.empty_like(x, dtype=FP8_DTYPE)
    scales = torch.empty(R, 1, dtype=torch.float32, device=x.device)
    if x.numel():
        quantize_fp8_rowwise_kernel[(R,)](
            x,
            codes,
            scales,
            K,
            GREATEST=GREATEST,
            LEAST_SCALE=LEAST_SCALE,
            **row_launch(K),
            enable_fp_fusion=True,
        )
    return codes, scales
