"""SiLU, depthwise 3x3, bias and SiLU gate on channels-last tokens in one pass; SiLU(hidden) is never written.

B batch, N = height x width tokens, F hidden width, C channels of a program.

A program walks down a strip of four columns of the image. For each row it loads six columns of value and gate channels
and takes their SiLU once. It holds three rows of four sums: the row above ends, the own row continues, the row below
begins. Walks of any length add a sum's nine taps in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4  # width of a strip, unrolled in the kernel
LAUNCH = {"BLOCK_C": 256, "num_warps": 4}
ENOUGH_PROGRAMS = 2048  # programs of whole columns; fewer walk in pieces, to keep every multiprocessor busy
PIECE = 8  # rows of a walk then


@triton.jit
def _silu(x, FAST: tl.constexpr):
    """x sigmoid(x). The fast form needs one operation of the special function unit, not two.

    Its error is below 2^-11 |x| / 2, which is less than the precision of 16-bit results.
    """
    if FAST:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return half * tanh + half
    return x * tl.sigmoid(x)


@triton.jit
def _load(p_row, o_c, i_column, width, channels, F, FAST: tl.constexpr):
    """SiLU of one token's first F of ``channels``; zero, whose SiLU is zero, outside of the row."""
    m_c = o_c < tl.where((i_column >= 0) & (i_column < width), F, 0)
    return _silu(tl.load(p_row + i_column * channels + o_c, mask=m_c, other=0.0).to(tl.float32), FAST)


@triton.jit
def _taps(sums, s, w0, w1, w2):
    """Adds one row of taps to the sums of four columns."""
    return (
        sums[0] + s[0] * w0 + s[1] * w1 + s[2] * w2,
        sums[1] + s[1] * w0 + s[2] * w1 + s[3] * w2,
        sums[2] + s[2] * w0 + s[3] * w1 + s[4] * w2,
        sums[3] + s[3] * w0 + s[4] * w1 + s[5] * w2,
    )


@triton.jit
def _walk(p_row, o_c, i_column, width, channels, F, bias, w, above, here, FAST: tl.constexpr):
    """One row of the image: what it adds to the sums of the row above, to its own and to those of the row below."""
    s = (
        _load(p_row, o_c, i_column - 1, width, channels, F, FAST),
        _load(p_row, o_c, i_column, width, channels, F, FAST),
        _load(p_row, o_c, i_column + 1, width, channels, F, FAST),
        _load(p_row, o_c, i_column + 2, width, channels, F, FAST),
        _load(p_row, o_c, i_column + 3, width, channels, F, FAST),
        _load(p_row, o_c, i_column + 4, width, channels, F, FAST),
    )
    ended = _taps(above, s, w[6], w[7], w[8])
    going = _taps(here, s, w[3], w[4], w[5])
    begun = _taps((bias, bias, bias, bias), s, w[0], w[1], w[2])
    return ended, going, begun


@triton.jit
def _weights(weight, o_c, m_c):
    """The nine taps of each channel."""
    p = weight + o_c * 9
    return (
        tl.load(p, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 1, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 2, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 3, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 4, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 5, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 6, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 7, mask=m_c, other=0.0).to(tl.float32),
        tl.load(p + 8, mask=m_c, other=0.0).to(tl.float32),
    )


@triton.jit
def gated_depthwise_kernel(
    hidden,  # (B, N, 2F)
    weight,  # (2F, 1, 3, 3)
    bias,  # (2F,) or None
    out,  # out (B, N, F)
    height,
    width,
    F,
    strips,
    rows,
    FAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    i_c, i_strip, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_column = i_strip % strips * 4
    i_first = i_strip // strips * rows
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < F
    w_value, w_gate = _weights(weight, o_c, m_c), _weights(weight, F + o_c, m_c)
    zero = tl.zeros((BLOCK_C,), tl.float32)
    bias_value, bias_gate = zero, zero
    if bias is not None:
        bias_value = tl.load(bias + o_c, mask=m_c, other=0.0).to(tl.float32)
        bias_gate = tl.load(bias + F + o_c, mask=m_c, other=0.0).to(tl.float32)

    p_image = hidden + i_b * height * width * 2 * F
    p_out = out + i_b * height * width * F
    value_above, gate_above = (zero, zero, zero, zero), (zero, zero, zero, zero)
    value_here, gate_here = (zero, zero, zero, zero), (zero, zero, zero, zero)
    for i in range(rows + 2):
        i_row = i_first - 1 + i
        F_row = tl.where((i_row >= 0) & (i_row < height), F, 0)
        p_row = p_image + i_row * width * 2 * F
        value, value_above, value_here = _walk(
            p_row, o_c, i_column, width, 2 * F, F_row, bias_value, w_value, value_above, value_here, FAST
        )
        gate, gate_above, gate_here = _walk(
            p_row + F, o_c, i_column, width, 2 * F, F_row, bias_gate, w_gate, gate_above, gate_here, FAST
        )
        for j in tl.static_range(4):
            ended = (i_row > i_first) & (i_row <= height) & (i_column + j < width)
            p_token = p_out + ((i_row - 1) * width + i_column + j) * F
            b_out = (value[j] * _silu(gate[j], FAST)).to(out.dtype.element_ty)
            tl.store(p_token + o_c, b_out, mask=o_c < tl.where(ended, F, 0))


def walk_rows(B: int, height: int, width: int, F: int) -> int:
    """The launch rule: rows of one walk. Whole columns read nothing twice; pieces are more programs."""
    programs = B * triton.cdiv(width, COLUMNS) * triton.cdiv(F, LAUNCH["BLOCK_C"])
    return height if programs >= ENOUGH_PROGRAMS else min(PIECE, height)


def launch(hidden: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, rows: int) -> Tensor:
    """`gated_depthwise` in walks of ``rows`` rows, of which the result does not depend."""
    hidden, weight = hidden.contiguous(), weight.contiguous()
    B, N, F = hidden.shape[0], hidden.shape[1], hidden.shape[2] // 2
    out = torch.empty(B, N, F, dtype=hidden.dtype, device=hidden.device)
    if not out.numel():
        return out
    strips = triton.cdiv(width, COLUMNS)
    grid = (triton.cdiv(F, LAUNCH["BLOCK_C"]), strips * triton.cdiv(height, rows), B)
    gated_depthwise_kernel[grid](
        hidden,
        weight,
        bias,
        out,
        height,
        width,
        F,
        strips,
        rows,
        FAST=hidden.is_cuda and hidden.dtype != torch.float32,  # the interpreter has no PTX
        **LAUNCH,
        enable_fp_fusion=True,
    )
    return out


def gated_depthwise(hidden: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    """See `bestofn.kernels.gated_depthwise.gated_depthwise`."""
    rows = walk_rows(hidden.shape[0], height, width, hidden.shape[2] // 2)
    return launch(hidden, weight, bias, height, width, rows)
