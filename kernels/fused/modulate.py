"""Residual, norm and modulation in one pass over a token: each element is read once and written once.

B batch, N tokens, D width, R rows of any number of axes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestofn.kernels.fused.rows import row_launch, tile_launch


@triton.jit
def residual_norm_kernel(
    x,  # (B, N, D)
    gate,  # (B, D) or None: an ungated residual
    update,  # (B, N, D) or None: no residual
    total,  # out (B, N, D), of the residual
    shift,  # (B, D) or None: no norm
    scale,  # (B, D)
    weight,  # (D,) or None
    bias,  # (D,) or None
    out,  # out (B, N, D), of the norm
    gate_row,
    shift_row,
    scale_row,
    N,
    D,
    eps,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)
    i_b = i_row // N
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_row = i_row * D + o_d

    b_x = tl.load(x + o_row, mask=m_d, other=0.0).to(tl.float32)
    if update is not None:
        b_update = tl.load(update + o_row, mask=m_d, other=0.0).to(tl.float32)
        if gate is not None:
            b_update *= tl.load(gate + i_b * gate_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_total = (b_x + b_update).to(total.dtype.element_ty)
        tl.store(total + o_row, b_total, mask=m_d)
        b_x = b_total.to(tl.float32)  # the norm sees what the next reader of `total` will see
    if shift is not None:
        b_x = tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)
        b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + eps)
        if weight is not None:
            b_y *= tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)
        if bias is not None:
            b_y += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_scale = tl.load(scale + i_b * scale_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_shift = tl.load(shift + i_b * shift_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(out + o_row, (b_y * (1.0 + b_scale) + b_shift).to(out.dtype.element_ty), mask=m_d)


@triton.jit
def rms_norm_kernel(
    x,  # (R, D)
    weight,  # (D,)
    bias,  # (D,) or None
    residual,  # (R, D) or None
    out,  # out (R, D)
    R,
    D,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_rd = o_r[:, None] * D + o_d[None, :]
    m_rd = (o_r < R)[:, None] & m_d[None, :]
    b_x = tl.load(x + o_rd, mask=m_rd, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, 1) / D + eps)[:, None]
    b_y *= tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    if bias is not None:
        b_y += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        b_y += tl.load(residual + o_rd, mask=m_rd, other=0.0).to(tl.float32)
    tl.store(out + o_rd, b_y.to(out.dtype.element_ty), mask=m_rd)


def _launch(
    x: Tensor,
    gate: Tensor | None,
    update: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The kernel with or without a residual (``update``) and a norm (``shift``); what is left out returns x itself."""
    B, N, D = x.shape
    x = x.contiguous()
    update = None if update is None else update.contiguous()
    total = x if update is None else torch.empty_like(x)
    out = total if shift is None else torch.empty_like(x)
    # the timestep's rows are slices of one tensor, read where they lie
    gate, shift, scale = (None if row is None else row.expand(B, 1, D) for row in (gate, shift, scale))
    strides = (0 if row is None else row.stride(0) for row in (gate, shift, scale))
    if x.numel():
        residual_norm_kernel[(B * N,)](
            x,
            gate,
            update,
            total,
            shift,
            scale,
            weight,
            bias,
            out,
            *strides,
            N,
            D,
            eps,
            **row_launch(D),
            enable_fp_fusion=True,
        )
    return total, out


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See `bestofn.kernels.modulate.modulated_norm`."""
    return _launch(x, None, None, shift, scale, eps, weight, bias)[1]


def gated_residual(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """See `bestofn.kernels.modulate.gated_residual`."""
    return _launch(x, gate, update, None, None, 0.0, None, None)[0]


def residual_norm(
    x: Tensor,
    gate: Tensor | None,
    update: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `bestofn.kernels.modulate.residual_norm`."""
    return _launch(x, gate, update, shift, scale, eps, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """See `bestofn.kernels.modulate.rms_norm`."""
    x, D = x.contiguous(), x.shape[-1]
    residual = None if residual is None else residual.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        R, launch = x.numel() // D, tile_launch(D)
        grid = (triton.cdiv(R, launch["BLOCK_R"]),)
        rms_norm_kernel[grid](x, weight, bias, residual, out, R, D, eps, **launch, enable_fp_fusion=True)
    return out
