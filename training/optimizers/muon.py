"""Muon for every weight that is a matrix or a convolution, AdamW for the rest, behind one optimizer.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); `torch.optim.Muon` refuses
convolutions and steps matrix by matrix. Here equal shapes are orthogonalised in one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95  # of Muon
BETAS, EPS = (0.9, 0.98), 1e-8  # of AdamW


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


@dataclass
class Group:
    """Parameters that share a rule and a learning rate."""

    parameters: list[torch.nn.Parameter]
    learning_rate: float
    muon: bool
    weight_decay: float = 0.0


def groups_of(
    matrices: list[torch.nn.Parameter],
    parameters: Iterable[torch.nn.Parameter],
    matrix_rate: float,
    other_rate: float,
    weight_decay: float = 0.0,
) -> list[Group]:
    """Muon for the matrices, AdamW for all other parameters; weights of matrices decay."""
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return [Group(matrices, matrix_rate, muon=True, weight_decay=weight_decay), Group(rest, other_rate, muon=False)]


class MuonAdam:
    """Steps groups of parameters by Muon or AdamW; `scale` multiplies every learning rate (the schedule).

    The update of a matrix is scaled by 0.2 sqrt(max(M, N)), so that one learning rate fits both rules. Source: Liu et
    al., "Muon is scalable for LLM training", 2025. `dtype` is the dtype of the iteration; bfloat16 is enough.
    """

    def __init__(self, groups: Iterable[Group], dtype: torch.dtype = torch.float32) -> None:
        self.groups = list(groups)
        self.dtype = dtype
        self.steps = 0
        self.state: dict[Tensor, tuple[Tensor, ...]] = {}
        for group in self.groups:
            for p in group.parameters:
                self.state[p] = (torch.zeros_like(p),) if group.muon else (torch.zeros_like(p), torch.zeros_like(p))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters, in a fixed order."""
        return [p for group in self.groups for p in group.parameters]

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update from the gradients, which it then drops."""
        self.steps += 1
        for group in self.groups:
            rate = group.learning_rate * scale
            live: list[Tensor] = [p for p in group.parameters if p.grad is not None]
            if not live or rate == 0:
                continue
            if group.weight_decay:
                torch._foreach_mul_(live, 1 - rate * group.weight_decay)
            if group.muon:
                self._muon(live, rate)
            else:
                self._adam(live, rate)
        for p in self.parameters:
            p.grad = None

    def _muon(self, live: list[Tensor], rate: float) -> None:
        grads = [p.grad for p in live if p.grad is not None]
        buffers = [self.state[p][0] for p in live]
        torch._foreach_lerp_(buffers, grads, 1 - MOMENTUM)
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p, grad, buffer in zip(live, grads, buffers, strict=True):
            update = grad.lerp(buffer, MOMENTUM).reshape(p.shape[0], -1)
            by_shape[(update.shape[0], update.shape[1])].append((p, update))
        for (rows, columns), members in by_shape.items():
            X = orthogonalise(torch.stack([update for _, update in members]), self.dtype)
            X *= -rate * 0.2 * max(rows, columns) ** 0.5
            for (p, _), update in zip(members, X, strict=True):
                p.add_(update.view_as(p))

    def _adam(self, live: list[Tensor], rate: float) -> None:
        grads = [p.grad for p in live if p.grad is not None]
        first = [self.state[p][0] for p in live]
        second = [self.state[p][1] for p in live]
        beta1, beta2 = BETAS
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(denominators, EPS)
        torch._foreach_addcdiv_(live, first, denominators, -rate / (1 - beta1**self.steps))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit by bit."""
        return {"steps": self.steps, "state": [self.state[p] for p in self.parameters]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`, over the same parameters in the same order."""
        self.steps = saved["steps"]
        for p, values in zip(self.parameters, saved["state"], strict=True):
            for mine, theirs in zip(self.state[p], values, strict=True):
                mine.copy_(theirs)
