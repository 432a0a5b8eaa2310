"""What row kernels share: their launch rules, rows of a part of a tensor, and the inverse root mean square of a row.

B batch, N tokens, D width, R rows. One program holds one row in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def inverse_rms_kernel(
    x,  # (R, D)
    out,  # out (R,) float32
    x_row,
    D,
    eps,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    b_x = tl.load(x + i_row * x_row + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    tl.store(out + i_row, tl.rsqrt(tl.sum(b_x * b_x, 0) / D + eps))


def row_launch(D: int) -> dict[str, int]:
    """The launch rule: a row in one block, 16 elements a thread, which are two loads of 16 bytes in bfloat16."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": min(max(block // 512, 1), 16)}


def tile_launch(D: int) -> dict[str, int]:
    """The launch rule of many narrow rows: as many in a program as fill four warps, or one wide one by `row_launch`."""
    wide = row_launch(D)
    rows = max(1, 2048 // wide["BLOCK_D"])
    return {"BLOCK_R": rows, **wide, "num_warps": max(4, wide["num_warps"])}


def in_rows(x: Tensor) -> Tensor:
    """(..., D) -> (R, D) with a stride from row to row; copied only where there is no such stride."""
    return (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` over the last axis: (R, D), as `in_rows` gives them, -> (R,) float32."""
    R, D = x.shape
    out = torch.empty(R, dtype=torch.float32, device=x.device)
    if x.numel():
        inverse_rms_kernel[(R,)](x, out, x.stride(0), D, eps, **row_launch(D), enable_fp_fusion=True)
    return out
