"""Block-wise 8-bit numbers: a block is read, averaged and coded in registers, a few blocks a program.

n numbers in blocks of BLOCK.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestofn.kernels.blockwise_quant import BLOCK, LEVELS, blocks

LAUNCH = {"ROWS": 16, "num_warps": 8}  # 16 numbers a thread: a load of 16 bytes of codes, four of float32


@triton.jit
def blockwise_kernel(
    x,  # (n,) or None: the numbers are those of the codes
    codes,  # (n,) int8 or None: there is no mean yet
    scales,  # (blocks,) float32 or None
    mean,  # out (n,) float32 or None
    new_codes,  # out (n,) int8 or None: nothing to code
    new_scales,  # out (blocks,) float32 or None
    n,
    beta,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    o_block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_x = o_block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    m_block = o_block * BLOCK < n
    m_x = o_x < n

    if codes is not None:
        b_share = tl.load(codes + o_x, mask=m_x, other=0).to(tl.float32) / LEVELS
        b_scale = tl.load(scales + o_block, mask=m_block, other=0.0)
        b_mean = b_scale[:, None] * (b_share * tl.abs(b_share))
        if x is not None:
            b_mean = beta * b_mean + (1.0 - beta) * tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
    else:
        b_mean = tl.load(x + o_x, mask=m_x, other=0.0).to(tl.float32)
    if mean is not None:
        tl.store(mean + o_x, b_mean, mask=m_x)
    if new_codes is not None:
        b_size = tl.abs(b_mean)
        b_most = tl.max(b_size, 1)
        # one number that is not finite makes its block so, as torch's maximum does
        b_most = tl.where(tl.sum((b_size == b_size).to(tl.int32), 1) == BLOCK, b_most, float("nan"))
        b_share = b_size / tl.where(b_most == 0.0, 1.0, b_most)[:, None]
        b_code = tl.floor(LEVELS * tl.sqrt(b_share) + 0.5)
        b_code = tl.where(b_code <= LEVELS, b_code, 0.0)
        b_code = tl.where(b_mean < 0.0, -b_code, b_code)
        tl.store(new_codes + o_x, b_code.to(tl.int8), mask=m_x)
        tl.store(new_scales + o_block, b_most, mask=m_block)


def _launch(
    x: Tensor | None, codes: Tensor | None, scales: Tensor | None, beta: float, wide: bool, coded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, codes and scales; what is not asked for is left as None inside of the kernel."""
    given = x if x is not None else codes
    assert given is not None
    n = given.numel()
    mean = torch.empty_like(given, dtype=torch.float32, memory_format=torch.contiguous_format) if wide else None
    new_codes = torch.empty_like(given, dtype=torch.int8, memory_format=torch.contiguous_format) if coded else None
    new_scales = torch.empty(blocks(n), dtype=torch.float32, device=given.device) if coded else None
    if n:
        grid = (triton.cdiv(blocks(n), LAUNCH["ROWS"]),)
        x, codes = (None if t is None else t.contiguous() for t in (x, codes))
        blockwise_kernel[grid](
            x,
            codes,
            scales,
            mean,
            new_codes,
            new_scales,
            n,
            beta,
            LEVELS=LEVELS,
            BLOCK=BLOCK,
            **LAUNCH,
            enable_fp_fusion=True,
        )
    return mean, new_codes, new_scales  # type: ignore[return-value]


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `bestofn.kernels.blockwise_quant.quantise`."""
    return _launch(x, None, None, 0.0, wide=False, coded=True)[1:]


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """See `bestofn.kernels.blockwise_quant.dequantise`."""
    return _launch(None, codes, scales, 0.0, wide=True, coded=False)[0]


def quantised_average(x: Tensor, codes: Tensor, scales: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `bestofn.kernels.blockwise_quant.quantised_average`."""
    return _launch(x, codes, scales, beta, wide=True, coded=True)
