"""The transformer with FP8 matrix products in its layers: for drafts, whose images are not kept.

Numbers are float8 (e4m3) with one scale a row: a weight's rows once, a token's with every product. The products of a
GPU's tensor cores then take half the time; the rest stays as it is.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bestofn.kernels.fp8 import quantize_fp8_rowwise
from bestofn.models.errors import UnsupportedDevice
from bestofn.models.linear_dit.blocks import LinearAttention
from bestofn.models.linear_dit.model import LinearDiT

MULTIPLE = 16  # divides both sides of a weight, as the products require
CAPABILITY = (8, 9)  # least of CUDA devices with such products: Ada, Hopper and later


def check_supported(device: torch.device) -> None:
    """Raises UnsupportedDevice if FP8 products cannot be computed there; on a CPU they can, slowly."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UnsupportedDevice(
            f"FP8 drafts need a GPU of compute capability {'.'.join(map(str, CAPABILITY))} or later (Ada, "
            f"Hopper), {device} is {name}: unset BESTOFN_FP8_DRAFTS"
        )


class FP8Linear(nn.Module):
    """A linear layer whose product is taken in FP8 and summed in float32; (..., K) -> (..., M) in x's dtype.

    The bias is added to the sum before it is rounded, in the product's own kernel. Fast accumulation keeps fewer bits
    of the sum on Hopper, which drafts do not notice.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with torch.no_grad():
            codes, scale = quantize_fp8_rowwise(weight)  # (M, K), (M, 1)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)
        self.bias = bias  # shared

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight.t()  # type: ignore[operator]
        scale: Tensor = self.scale.t()  # type: ignore[operator]
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)  # as the result
        codes, rows = quantize_fp8_rowwise(x.flatten(0, -2))
        y = torch._scaled_mm(codes, weight, rows, scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


class FP8Attention(LinearAttention):
    """Linear attention whose queries, keys and values are one FP8 product."""

    to_qkv: FP8Linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.attend(*self.to_qkv(x).chunk(3, dim=-1))


@torch.no_grad()
def with_fp8_products(model: LinearDiT) -> LinearDiT:
    """The model with FP8 products in its layers.

    It shares all other weights, so it takes a quarter (float32) or half (bfloat16) of the layers' memory in addition.
    Keys and values of prompts come from the original model.
    """
    twin: Any = _copied(model)
    twin.transformer_blocks = nn.ModuleList([_converted(block) for block in model.transformer_blocks])
    block: Any
    own: Any
    for block, own in zip(twin.transformer_blocks, model.transformer_blocks, strict=True):
        block.attn2.to_k, block.attn2.to_v = own.attn2.to_k, own.attn2.to_v  # for prompts, which the model itself reads
    return twin  # type: ignore[no-any-return]


def _copied(module: nn.Module) -> nn.Module:
    """A module of its own that holds the same children, parameters and buffers."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return FP8Linear(module.weight, module.bias) if _fits(module) else module
    twin = _copied(module)
    if isinstance(twin, LinearAttention) and _fits(twin.to_q):
        layers: Any = [twin._modules.pop(name) for name in ("to_q", "to_k", "to_v")]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
        twin.__class__ = FP8Attention
        twin.to_qkv = FP8Linear(torch.cat(weights), torch.cat(biases) if biases else None)
    for name, child in twin.named_children():
        twin._modules[name] = _converted(child)
    return twin


def _fits(linear: nn.Linear) -> bool:
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
