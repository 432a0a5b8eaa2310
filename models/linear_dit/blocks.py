"""The transformer block of SANA: linear attention, cross-attention, Mix-FFN (arXiv 2410.10629, figure 5).

B batch, N tokens, D width, F feed-forward width, L text tokens, H cross-attention heads, K channels per head.
Parameters carry the names of the diffusers checkpoint, so a key in an error message is a key in the file.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestofn.kernels.cross_attention import cross_attention
from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.kernels.modulate import gated_residual, residual_norm
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.embeddings import RMSNorm

FLOAT16_MAX = 65_504.0
QK_NORM_EPS = 1e-5
Norm = tuple[Tensor, Tensor, float]  # shift and scale (B, 1, D) and eps of a modulated norm


def _norm(config: LinearDiTConfig, width: int) -> nn.Module:
    return RMSNorm(width, QK_NORM_EPS) if config.qk_norm else nn.Identity()


def _weight(norm: nn.Module) -> Tensor | None:
    """Of a norm that is computed inside of the attention."""
    return norm.weight if isinstance(norm, RMSNorm) else None


class LinearAttention(nn.Module):
    """ReLU linear attention among the image's tokens.

    Attributes:
        packed: (3 D, D), the memory of the three weights of q, k and v after `pack`; None before.
    """

    packed: Tensor | None = None

    def __init__(self, config: LinearDiTConfig) -> None:
        super().__init__()
        D = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(D, D, bias=config.attention_bias)
        self.to_k = nn.Linear(D, D, bias=config.attention_bias)
        self.to_v = nn.Linear(D, D, bias=config.attention_bias)
        self.norm_q = _norm(config, D)
        self.norm_k = _norm(config, D)
        self.to_out = nn.ModuleList([nn.Linear(D, D)])

    @torch.no_grad()
    def pack(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move the weights of q, k and v into one tensor, so that one product takes all three where no gradient is
        wanted. They stay parameters under their names; those of the meta device are not initialised. Layers with a bias
        stay apart."""
        if self.to_q.bias is None:
            weights = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight]).to(dtype)
            weights = torch.empty_like(weights, device=device) if weights.is_meta else weights.to(device)
            for linear, rows in zip((self.to_q, self.to_k, self.to_v), weights.chunk(3), strict=True):
                linear.weight = nn.Parameter(rows, linear.weight.requires_grad)
            self.packed = weights

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.packed = None  # parameters are moved one by one
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.packed is None or torch.is_grad_enabled():
            return self.attend(self.to_q(x), self.to_k(x), self.to_v(x))
        return self.attend(*F.linear(x, self.packed).chunk(3, dim=-1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, D) three times -> (B, N, D)."""
        weights = _weight(self.norm_q), _weight(self.norm_k)
        out: Tensor = self.to_out[0](relu_linear_attention(q, k, v, self.heads, *weights, QK_NORM_EPS))  # (B, N, D)
        # SANA-1.0's float16 weights were trained with this clamp; wider dtypes do not need it.
        return out.clip(-FLOAT16_MAX, FLOAT16_MAX) if out.dtype == torch.float16 else out


class CrossAttention(nn.Module):
    """Softmax attention from the image's tokens to the prompt's."""

    def __init__(self, config: LinearDiTConfig) -> None:
        super().__init__()
        D, W = config.width, config.cross_width
        self.heads = config.num_cross_attention_heads
        self.to_q = nn.Linear(D, W)
        self.to_k = nn.Linear(D, W)
        self.to_v = nn.Linear(D, W)
        self.norm_q = _norm(config, W)
        self.norm_k = _norm(config, W)
        self.to_out = nn.ModuleList([nn.Linear(W, D)])

    def keys_values(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Projected caption (B, L, D) -> keys and values (B, H, L, K); once per prompt."""
        k = self.norm_k(self.to_k(caption)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, K)
        v = self.to_v(caption).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, K)
        return k, v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, prompts: Tensor | None = None) -> Tensor:
        """(B, N, D), (P, H, L, K) twice, (P, 1, 1, L), each row's prompt (B,) -> (B, N, D)."""
        norm = _weight(self.norm_q), QK_NORM_EPS
        out = cross_attention(self.to_q(x), keys, values, bias, *norm, prompts)  # (B, N, W)
        return self.to_out[0](out)  # type: ignore[no-any-return]


class PointwiseConv(nn.Linear):
    """A 1x1 convolution on channels-last tokens: a matrix product."""


class DepthwiseConv(nn.Module):
    """Weights of the depthwise 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, groups=channels)  # for its initialisation
        self.weight = conv.weight
        self.bias = conv.bias


class MixFFN(nn.Module):
    """Parameters of the feed-forward network, whose depthwise convolution also gives tokens their position.

    `Block.forward` computes it, where nothing holds a tensor after it was read: memory is shortest here.
    """

    def __init__(self, config: LinearDiTConfig) -> None:
        super().__init__()
        D, hidden = config.width, config.ffn_width
        self.conv_inverted = PointwiseConv(D, 2 * hidden)
        self.conv_depth = DepthwiseConv(2 * hidden)
        self.conv_point = PointwiseConv(hidden, D, bias=False)


class Block(nn.Module):
    """Modulated linear attention, cross-attention, modulated Mix-FFN, each on a residual.

    A block's last residual and the next block's first norm are one pass. `LinearDiT.forward` begins with a norm alone.
    """

    def __init__(self, config: LinearDiTConfig) -> None:
        super().__init__()
        D = config.width
        self.eps = config.norm_eps
        self.attn1 = LinearAttention(config)
        self.norm2 = nn.LayerNorm(D, eps=config.norm_eps, elementwise_affine=config.norm_elementwise_affine)
        self.attn2 = CrossAttention(config)
        self.ff = MixFFN(config)
        self.scale_shift_table = nn.Parameter(torch.randn(6, D) / D**0.5)

    def forward(
        self, x: Tensor, h: Tensor, keys: Tensor, values: Tensor, bias: Tensor, modulation: Tensor, following: Norm,
        height: int, width: int, prompts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """
        Args:
            x, h: (B, N, D), tokens and their first norm.
            keys, values: (P, H, L, K), the block's.
            bias: (P, 1, 1, L).
            modulation: (B, 6, D), the block's table with the timestep's rows.
            following: norm that reads the result.
            height, width: token grid.
            prompts: (B,), prompt of each row; None: P = B.

        Returns:
            Tokens and their following norm, (B, N, D) twice.
        """
        _, _, gate_attention, shift_ffn, scale_ffn, gate_ffn = modulation.chunk(6, dim=1)  # six of (B, 1, D)
        ffn_norm = (shift_ffn, scale_ffn, self.eps, self.norm2.weight, self.norm2.bias)
        depth = self.ff.conv_depth

        x = gated_residual(x, gate_attention, self.attn1(h))  # (B, N, D)

        x, h = residual_norm(x, None, self.attn2(x, keys, values, bias, prompts), *ffn_norm)  # (B, N, D) twice

        h = self.ff.conv_inverted(h)  # (B, N, 2 F)
        h = gated_depthwise(h, depth.weight, depth.bias, height, width)  # (B, N, F)
        h = self.ff.conv_point(h)  # (B, N, D)
        return residual_norm(x, gate_ffn, h, *following)
