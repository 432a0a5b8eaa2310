"""The optimizers that a training may choose from, behind one interface."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bestofn.training.optimizers import Name
from bestofn.training.optimizers.came8bit import CAME, here
from bestofn.training.optimizers.muon import Muon

BETAS = (0.9, 0.98)  # AdamW's


class Scheduled:
    """Torch optimizers that step together, at the learning rates they were built with times a schedule's scale."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in a fixed order."""
        return [p for optimizer in self.optimizers for p in _parameters(optimizer)]

    def step(self, scale: float = 1.0) -> None:
        """One update from the gradients, which it then drops."""
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """For a resumed run; of a sharded parameter, the part that lies here: a file for each process."""
        every = [optimizer.state_dict() for optimizer in self.optimizers]
        return [
            saved | {"state": {i: {k: here(v) for k, v in values.items()} for i, values in saved["state"].items()}}
            for saved in every
        ]

    def load_state_dict(self, every: list[dict[str, Any]]) -> None:
        """Inverse of `state_dict`, over the same parameters cut in the same way."""
        for optimizer, saved in zip(self.optimizers, every, strict=True):
            if not isinstance(optimizer, CAME):  # whose state is always the local part
                state = {
                    i: {k: _like(v, p) for k, v in saved["state"].get(i, {}).items()}
                    for i, p in enumerate(_parameters(optimizer))
                }
                saved = saved | {"state": state}
            optimizer.load_state_dict(saved)


def build_optimizer(
    name: Name,
    matrices: list[nn.Parameter],
    parameters: Iterable[nn.Parameter],
    matrix_rate: float,
    other_rate: float,
    weight_decay: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Scheduled:
    """An optimizer of all parameters, of which `matrices` have a rate of their own, and alone decay.

    With "muon" the others are stepped by AdamW. Muon takes no sharded weights; `dtype` is that of its iteration.
    """
    chosen = {id(p) for p in matrices}
    first = {"params": matrices, "lr": matrix_rate, "weight_decay": weight_decay}
    rest = {"params": [p for p in parameters if id(p) not in chosen], "lr": other_rate, "weight_decay": 0.0}
    if name == "muon":
        return Scheduled(Muon([first], dtype=dtype), torch.optim.AdamW([rest], betas=BETAS, foreach=True))
    if name == "adamw":
        return Scheduled(torch.optim.AdamW([first, rest], betas=BETAS))
    return Scheduled(CAME([first, rest], bits=8 if name == "came8bit" else 32))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _like(value: Any, p: Tensor) -> Any:
    if isinstance(p, DTensor) and isinstance(value, Tensor) and value.ndim == p.ndim:
        return DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
    return value
