"""DC-AE's decoder for a GPU: diffusers' modules and weights, whose norms, residuals and gates take one pass each.

B images, C channels, (h, w) their sides. Channels come last in memory, so a pixel's channels are a row. One by one the
operators of a 1,024 px image move 58 GB, fused ones 29 (`make check-gpu`).
"""

from typing import Any

import torch
from diffusers import AutoencoderDC
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.kernels.modulate import rms_norm


def fuse(vae: AutoencoderDC) -> None:
    """Let the decoder's modules compute with fused operators; their parameters and names stay.

    Blocks with another norm (batch norm, in other DC-AEs than SANA's) stay as they are.
    """
    for module in vae.decoder.modules():
        norm: Any = getattr(module, "norm_out" if isinstance(module, SanaMultiscaleLinearAttention) else "norm", module)
        if type(module) in OWN and isinstance(norm, RMSNorm):
            module.__class__ = OWN[type(module)]


def _tokens(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C), without a copy if channels come last in memory."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h w, C) -> (B, C, h, w), of the sides of another image, channels last in memory."""
    B, _, h, w = like.shape
    return tokens.reshape(B, h, w, -1).permute(0, 3, 1, 2)


def _added(norm: Any, image: Tensor, residual: Tensor) -> Tensor:
    """The norm of an image over its channels, and a residual."""
    return _image(rms_norm(_tokens(image), norm.weight, norm.eps, norm.bias, _tokens(residual)), residual)


class FusedNorm(RMSNorm):  # type: ignore[misc]
    """A norm over the last axis, with its bias."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.eps, self.bias)


class FusedResBlock(ResBlock):  # type: ignore[misc]
    """Two convolutions on a residual."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _added(self.norm, self.conv2(self.nonlinearity(self.conv1(hidden_states))), hidden_states)


class FusedMixFFN(GLUMBConv):  # type: ignore[misc]
    """Gated depthwise convolution between two matrix products, on a residual."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide, depth = self.conv_inverted(hidden_states), self.conv_depth
        gated = gated_depthwise(_tokens(wide), depth.weight, depth.bias, *wide.shape[2:])
        return _added(self.norm, self.conv_point(_image(gated, wide)), hidden_states)


class FusedAttention(SanaMultiscaleLinearAttention):  # type: ignore[misc]
    """ReLU linear attention at several scales, on a residual; tiny images have diffusers' quadratic form."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.shape[2] * hidden_states.shape[3] <= self.attention_head_dim:
            return super().forward(hidden_states)  # type: ignore[no-any-return]
        tokens = _tokens(hidden_states)
        qkv = torch.cat([self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)], -1)  # (B, h w, 3 D)
        scales = [_tokens(scale(_image(qkv, hidden_states))) for scale in self.to_qkv_multiscale]
        heads = torch.cat([qkv, *scales], -1)
        heads = heads.reshape(*tokens.shape[:2], -1, 3, self.attention_head_dim)  # (B, h w, H, 3, K)
        query, key, value = (part.flatten(2) for part in heads.unbind(3))
        out = self.to_out(relu_linear_attention(query, key, value, heads.shape[2]))
        return _added(self.norm_out, _image(out, hidden_states), hidden_states)


OWN: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: FusedNorm,
    ResBlock: FusedResBlock,
    GLUMBConv: FusedMixFFN,
    SanaMultiscaleLinearAttention: FusedAttention,
}
