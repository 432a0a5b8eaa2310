"""Counts the floating-point operations of a verdict without computing it."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from bestofn.judge.nvila import Nvila

# Held by the model: a cache that held the models would keep gigabytes of released weights in memory.
_counted: WeakKeyDictionary[Nvila, dict[tuple[str, int], int]] = WeakKeyDictionary()


def vision_flops(model: Nvila, S: int) -> int:
    """Of the vision tower and the projector for one tile of S x S pixels (a multiply-add is two)."""
    return _once(model, ("vision", S), lambda: _count(_See(model), torch.empty(1, 3, S, S, device="meta")))


def language_flops(model: Nvila, L: int) -> int:
    """Of the language model for one conversation of L positions, the head for its last one only."""
    D = int(model.llm.config.hidden_size)
    head = 2 * D * model.vocabulary
    return _once(model, ("language", L), lambda: _count(_Read(model), torch.empty(1, L, D, device="meta")) + head)


def _once(model: Nvila, key: tuple[str, int], count: Callable[[], int]) -> int:
    counts = _counted.setdefault(model, {})
    if key not in counts:
        counts[key] = count()
    return counts[key]


class _See(nn.Module):
    def __init__(self, model: Nvila) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.see(pixels)


class _Read(nn.Module):
    def __init__(self, model: Nvila) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.read(x)


def _count(module: nn.Module, x: Tensor) -> int:
    # Shapes decide the count, so the weights stand in as tensors without data.
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next(module.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(module, shapes, (x.to(dtype),))
    return int(counter.get_total_flops())
