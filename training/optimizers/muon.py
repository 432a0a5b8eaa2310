"""Muon for weights that are matrices or convolutions.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); `torch.optim.Muon` refuses
convolutions and steps matrix by matrix. Here equal shapes are orthogonalised in one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95


def orthogonalise(G: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: a quintic Newton-Schulz iteration.  # (S, M, N) -> (S, M, N)"""
    a, b, c = NEWTON_SCHULZ
    tall = G.size(-2) > G.size(-1)
    X: Tensor = G.mT if tall else G
    X = (X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X.mT if tall else X).to(G.dtype)


class Muon(Optimizer):
    """Steps of orthogonalised momentum, after decoupled weight decay.

    The update of a matrix is scaled by 0.2 sqrt(max(M, N)), so that AdamW's learning rates fit. Source: Liu et al.,
    "Muon is scalable for LLM training", 2025. `dtype` is the dtype of the iteration; bfloat16 is enough.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there; it takes no closure."""
        for group in self.param_groups:
            live: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if live and group["weight_decay"]:
                torch._foreach_mul_(live, 1 - group["lr"] * group["weight_decay"])
            self._update(live, group["lr"])

    def _update(self, live: list[Tensor], rate: float) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p in live:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - MOMENTUM)
            update = p.grad.lerp(momentum, MOMENTUM).reshape(p.shape[0], -1)
            by_shape[update.shape[0], update.shape[1]].append((p, update))
        for (rows, columns), members in by_shape.items():
            X = orthogonalise(torch.stack([update for _, update in members]), self.dtype)
            X *= -rate * 0.2 * max(rows, columns) ** 0.5
            for (p, _), update in zip(members, X, strict=True):
                p.add_(update.view_as(p))
