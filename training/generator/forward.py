"""The SANA transformer's forward, laid out for training on a CPU, over the parameters of the diffusers module.

Tokens stay channels-last, matrix products run in a dtype of choice (bfloat16 where the CPU has it), residuals, norms
and modulation in float32. B batch, N tokens, D width, L text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SanaTransformer2DModel
from torch import Tensor

MASKED = -10_000.0


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    factor = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return x * factor.to(x.dtype) * weight.to(x.dtype)


def _norm(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.addcmul(shift.to(dtype), F.layer_norm(x, x.shape[-1:], eps=1e-6).to(dtype), (1 + scale).to(dtype))


def _linear(x: Tensor, layer: Any, dtype: torch.dtype) -> Tensor:
    weight, bias = layer.weight, layer.bias
    return F.linear(x.to(dtype), weight.flatten(1).to(dtype), None if bias is None else bias.to(dtype))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)  # (B, H, N, K)


def _self_attention(attn: Any, h: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]).to(dtype)
    q, k, v = F.linear(h.to(dtype), weight).chunk(3, -1)  # (B, N, D) each
    q, k = F.relu(_rms(q, attn.norm_q.weight)), F.relu(_rms(k, attn.norm_k.weight))
    q, k, v = (_heads(x, heads) for x in (q, k, v))  # (B, H, N, K)
    scores = k.transpose(-1, -2) @ v  # (B, H, K, K)
    total = q.float() @ k.float().sum(-2).unsqueeze(-1)  # (B, H, N, 1)
    out = (q @ scores) / (total + 1e-6)
    return _linear(out.transpose(1, 2).flatten(2), attn.to_out[0], dtype)


def _cross_attention(attn: Any, x: Tensor, text: Tensor, bias: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    q = _rms(_linear(x, attn.to_q, dtype), attn.norm_q.weight)
    k = _rms(_linear(text, attn.to_k, dtype), attn.norm_k.weight)
    v = _linear(text, attn.to_v, dtype)
    q, k, v = (_heads(y, heads) for y in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float() + bias
    out = weights.softmax(-1).to(dtype) @ v
    return _linear(out.transpose(1, 2).flatten(2), attn.to_out[0], dtype)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, side: int) -> Tensor:
    y = F.conv2d(x.view(len(x), side, side, -1).permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0])
    return y.permute(0, 2, 3, 1).flatten(1, 2)


def _feed_forward(ff: Any, h: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    y = F.silu(_linear(h, ff.conv_inverted, dtype))
    y = _depthwise(y, ff.conv_depth.weight.to(dtype), ff.conv_depth.bias.to(dtype), side)
    value, gate = y.chunk(2, -1)
    return _linear(value * F.silu(gate), ff.conv_point, dtype)


def block_forward(
    block: Any, x: Tensor, text: Tensor, bias: Tensor, rows: Tensor, side: int, dtype: torch.dtype
) -> Tensor:
    """One block: tokens (B, N, D), text (B, L, D), bias (B, 1, 1, L), modulation (B, 6, D)."""
    heads, cross_heads = block.attn1.heads, block.attn2.heads
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table + rows).chunk(6, 1)
    x = x + gate1 * _self_attention(block.attn1, _norm(x, shift1, scale1, dtype), heads, dtype)
    x = x + _cross_attention(block.attn2, x, text, bias, cross_heads, dtype)
    out: Tensor = x + gate2 * _feed_forward(block.ff, _norm(x, shift2, scale2, dtype), side, dtype)
    return out


def flow_loss(
    model: SanaTransformer2DModel,
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    text: Tensor,
    mask: Tensor,
    dtype: torch.dtype = torch.float32,
    tap: int = 0,
) -> tuple[Tensor, Tensor]:
    """Flow matching of latents x (B, C, h, w): ``|| velocity - (noise - x) ||^2``, and the tokens of `forward`."""
    level = sigma[:, None, None, None]
    velocity, tokens = forward(model, (1 - level) * x + level * noise, sigma, text, mask, dtype, tap)
    return (velocity - (noise - x)).square().mean(), tokens


def forward(
    model: SanaTransformer2DModel,
    latents: Tensor,
    sigma: Tensor,
    text: Tensor,
    mask: Tensor,
    dtype: torch.dtype,
    tap: int,
) -> tuple[Tensor, Tensor]:
    """Velocity (B, C, h, w) and the tokens (B, N, D) after block `tap`; latents (B, C, h, w), sigma (B) in 0..1."""
    p = model.config.patch_size
    side = latents.shape[-1] // p
    x = latents.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, N, C p p)
    proj = model.patch_embed.proj
    x = F.linear(x, proj.weight.flatten(1), proj.bias) + model.patch_embed.pos_embed
    rows, time = model.time_embed(sigma * 1000, batch_size=len(sigma), hidden_dtype=torch.float32)
    rows = rows.view(len(rows), 6, -1)
    text = model.caption_norm(model.caption_projection(text))
    bias = ((1 - mask.float()) * MASKED)[:, None, None, :]
    tapped = x
    for index, block in enumerate(model.transformer_blocks):
        x = block_forward(block, x, text, bias, rows, side, dtype)
        if index == tap:
            tapped = x
    shift, scale = (model.scale_shift_table[None] + time[:, None]).chunk(2, 1)
    out = model.proj_out(_norm(x, shift, scale, torch.float32))  # (B, N, p p C)
    out = out.view(len(out), side, side, p, p, -1).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(latents.shape), tapped
