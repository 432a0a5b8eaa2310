"""DC-AE's decoder for a GPU: diffusers' modules and weights, whose norms, residuals and gates take one pass each.

B images, C channels, (h, w) their sides. Channels come last in memory, so a pixel's channels are a row. One by one the
operators of a 1,024 px image move 57 GB, fused ones 23 (`make check-gpu`). Upsampling is a part of its convolution.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, ResBlock
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import relu_linear_attention
from bestofn.kernels.modulate import rms_norm


def fuse(vae: AutoencoderDC) -> None:
    """Let the decoder's modules compute with fused operators; their parameters and names stay.

    Blocks with another norm or another upsampling (in other DC-AEs than SANA's) stay as they are.
    """
    for module in [*vae.decoder.modules()]:
        norm: Any = getattr(module, "norm_out" if isinstance(module, SanaMultiscaleLinearAttention) else "norm", module)
        if type(module) in OWN and (isinstance(norm, RMSNorm) or _is_nearest(module)):
            module.__class__ = OWN[type(module)]
            if isinstance(module, FusedUpsampling):
                module.sum_weights()


def _is_nearest(module: Any) -> bool:
    """Whether a module upsamples to nearest neighbours on a shortcut whose channels divide into the result's."""
    return isinstance(module, DCUpBlock2d) and bool(
        module.interpolate and module.interpolation_mode == "nearest" and module.shortcut and module.repeats in SHORTCUT
    )


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


class FusedUpsampling(DCUpBlock2d):  # type: ignore[misc]
    """Twice as many pixels on a side, each its nearest neighbour, and a 3x3 convolution of them, on a shortcut.

    The nine neighbours of a new pixel are copies of 2x2 old ones. So each of the four new pixels of an old one is a 2x2
    convolution by sums of weights, with 4 / 9 of the operations. One convolution takes all four.
    """

    places: Tensor  # (4 C', C, 2, 2): (2 a + b) C' + c is channel c of the new pixel in row a, column b of an old one
    place_bias: Tensor  # (4 C',)

    @torch.no_grad()
    def sum_weights(self) -> None:
        """Sum the convolution's weights in float32; again after every change of them."""
        columns = _sums(self.conv.weight.float(), 3)  # (b, C', C, 3, 2)
        weight = _sums(columns, 3).flatten(0, 2)  # (a, b, C', C, 2, 2)
        weight = weight.to(self.conv.weight.dtype, memory_format=torch.channels_last)
        self.register_buffer("places", weight, persistent=False)
        self.register_buffer("place_bias", self.conv.bias.repeat(4), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        (B, _, h, w), C = hidden_states.shape, self.conv.out_channels
        wide = F.conv2d(hidden_states, self.places, self.place_bias, padding=1)  # (B, 4 C', h + 1, w + 1)
        b, c, i, j = wide.stride()
        # the new pixel (a, b) of (i, j) is in the convolution's pixel (i + a, j + b)
        wide = wide.as_strided((B, h, 2, w, 2, C), (b, i, i + 2 * C * c, j, j + C * c, c))
        shortcut = torch.unflatten(hidden_states, 1, (C, *SHORTCUT[self.repeats]))  # (B, C', a or 1, b or 1, h, w)
        out = hidden_states.new_empty(B, h, 2, w, 2, C)
        torch.add(wide, shortcut.permute(0, 4, 2, 5, 3, 1), out=out)
        return out.view(B, 2 * h, 2 * w, C).permute(0, 3, 1, 2)


# the shortcut repeats each channel; by how often: its channels for rows and columns of new pixels
SHORTCUT = {1: (2, 2), 2: (2, 1), 4: (1, 1)}


def _sums(weight: Tensor, axis: int) -> Tensor:
    """Three weights along an axis -> the two that see old pixels, for the first and the second new pixel, in front."""
    before, here, after = weight.unbind(axis)
    first, second = torch.stack([before, here + after], axis), torch.stack([before + here, after], axis)
    return torch.stack([first, second])


OWN: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: FusedNorm,
    ResBlock: FusedResBlock,
    DCUpBlock2d: FusedUpsampling,
    GLUMBConv: FusedMixFFN,
    SanaMultiscaleLinearAttention: FusedAttention,
}
