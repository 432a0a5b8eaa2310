"""Counts the floating-point operations of a verdict without computing it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from bestofn.judge.nvila import Nvila

# Held by the model: a cache that held the models would keep gigabytes of released weights in memory.
_counted: WeakKeyDictionary[Nvila, dict[int, int]] = WeakKeyDictionary()


def vision_flops(model: Nvila, S: int) -> int:
    """Of the vision tower and the projector for one tile of S x S pixels (a multiply-add is two).

    Counted once per model and side, with a forward over shapes alone; a judge's tiles have one side.
    """
    counts = _counted.setdefault(model, {})
    if S not in counts:
        counts[S] = _count(_See(model), torch.empty(1, 3, S, S, device="meta"))
    return counts[S]


def language_flops(model: Nvila, L: int) -> int:
    """Of the language model for one conversation of L positions, the head for its last one only.

    A closed form, because L changes with every prompt. Qwen2: width D, inner width F, H heads and G key heads of K
    channels.
    """
    config = model.llm.config
    D, F = int(config.hidden_size), int(config.intermediate_size)
    H, G = int(config.num_attention_heads), int(config.num_key_value_heads)
    K = int(getattr(config, "head_dim", None) or D // H)
    products = 2 * L * (D * K * (H + 2 * G) + H * K * D + 3 * D * F)
    attention = 2 * 2 * L * L * H * K
    return int(config.num_hidden_layers) * (products + attention) + 2 * D * model.vocabulary


class _See(nn.Module):
    def __init__(self, model: Nvila) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.see(pixels)


def _count(module: nn.Module, x: Tensor) -> int:
    # Shapes decide the count, so the weights stand in as tensors without data.
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next(module.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(module, shapes, (x.to(dtype),))
    return int(counter.get_total_flops())
