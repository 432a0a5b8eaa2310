"""The optimizers that a training may choose from, behind the interface of `MuonAdam`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bestofn.training.optimizers import Name
from bestofn.training.optimizers.came8bit import CAME, here
from bestofn.training.optimizers.muon import Group, MuonAdam


class Scheduled:
    """A torch optimizer whose learning rates are those it was built with, times the schedule's scale."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in a fixed order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, scale: float = 1.0) -> None:
        """One update from the gradients, which it then drops."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Of a sharded parameter, the part that lies here: a file for each process."""
        saved = self.optimizer.state_dict()
        state = {i: {k: here(v) for k, v in values.items()} for i, values in saved["state"].items()}
        return {**saved, "state": state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`, over the same parameters cut in the same way."""
        if not isinstance(self.optimizer, CAME):  # whose state is always the local part
            state = {
                i: {k: _like(v, p) for k, v in saved["state"].get(i, {}).items()} for i, p in enumerate(self.parameters)
            }
            saved = {**saved, "state": state}
        self.optimizer.load_state_dict(saved)


Stepper = MuonAdam | Scheduled


def build_optimizer(name: Name, groups: Iterable[Group]) -> Stepper:
    """An optimizer of groups, of which `Group.muon` counts for Muon alone; Muon takes no sharded weights."""
    groups = [group for group in groups if group.parameters]
    if name == "muon":
        return MuonAdam(groups)
    plain = [{"params": g.parameters, "lr": g.learning_rate, "weight_decay": g.weight_decay} for g in groups]
    if name == "adamw":
        return Scheduled(torch.optim.AdamW(plain, betas=(0.9, 0.98)))
    return Scheduled(CAME(plain, bits=8 if name == "came8bit" else 32))


def _like(value: Any, p: Tensor) -> Any:
    if isinstance(p, DTensor) and isinstance(value, Tensor) and value.ndim == p.ndim:
        return DTensor.from_local(value, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
    return value
