"""CAME with its first moment in 8 bits: second moments as rows and columns, updates scaled by their confidence.

Sources: CAME, arXiv 2307.02047, algorithm 2; its first moment in 8 bits, SANA-1.5, arXiv 2501.18427, section 2.3.
R, C rows and columns of a matrix.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bestofn.kernels.blockwise_quant import blocks, quantised_average

SMALLEST = 4_096
"""Numbers of the smallest matrix whose first moment takes 8 bits: below, that saves nothing."""


class CAME(Optimizer):
    """Confidence-guided adaptive memory-efficient optimization, for each matrix::

        u = G / sqrt(outer(r, c) / mean(r))                 r, c: EMA of G^2 over columns, over rows
        u = u / max(1, rms(u) / clip)
        m = EMA of u                                        8 bits, block by block
        p = p - lr * m / sqrt(outer(a, b) / mean(a))        a, b: the same of (u - m)^2

    A convolution of one pixel is a matrix. For every other parameter the EMA of G^2 has the parameter's shape, and m is
    not scaled. Gradients are taken in float32. Means start at zero and are not corrected for it, as published, so begin
    with a warm-up. Parameters of `fully_shard` are stepped where they lie: sums over rows go through the processes.

    State of a parameter: ``moment``, or ``codes`` and ``scales``. Also ``row``, ``column``, ``residual_row`` and
    ``residual_column``, or ``square``. All but the codes are float32, whatever the parameter's dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        bits: int = 8,
        smallest: int = SMALLEST,
    ) -> None:
        """
        Args:
            params: parameters, or groups of them with their own values of what follows.
            lr: learning rate; about that of AdamW.
            betas: decay of the first moment, the squared gradient and the squared residual.
            eps: added to the squared gradient, to the squared residual.
            clip_threshold: greatest root mean square of u.
            weight_decay: decoupled, times the learning rate.
            bits: bits of the first moment of matrices, 8 or 32.
            smallest: numbers of the smallest matrix that this holds for; others keep 32.

        Raises:
            ValueError: naming the value that makes no sense.
        """
        if bits not in (8, 32):
            raise ValueError(f"the first moment takes 8 or 32 bits, got {bits}")
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, got {lr} and {weight_decay}")
        if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be three numbers from 0 to below 1, got {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip_threshold": clip_threshold}
        super().__init__(params, defaults | {"weight_decay": weight_decay, "bits": bits, "smallest": smallest})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the gradients that are there; the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        over = _shards(p)
        assert p.grad is not None
        weight, grad = here(p), here(p.grad)
        if grad.is_sparse:
            raise ValueError("CAME takes dense gradients: build the embedding with sparse=False")
        state = self.state[p]
        matrix = p.ndim >= 2 and p.shape[1] == p.shape[1:].numel()
        if not state:
            state.update(_initial(weight, matrix, group["bits"] == 8 and p.numel() >= group["smallest"] and matrix))
        beta1, beta2, beta3 = group["betas"]
        eps1, eps2 = group["eps"]
        G = (grad.flatten(1) if matrix else grad).float()
        square = G.square().add_(eps1)
        if matrix:
            _average(state["row"], state["column"], square, beta2, over)
            update = _inverse_root(state["row"], state["column"], over).mul_(G)
        else:
            update = state["square"].mul_(beta2).add_(square, alpha=1 - beta2).rsqrt().mul_(G)
        rms = (_sum(update.square().sum(), over) / p.numel()).sqrt()
        update.div_((rms / group["clip_threshold"]).clamp_(min=1.0))
        if "codes" in state:
            moment, state["codes"], state["scales"] = quantised_average(update, state["codes"], state["scales"], beta1)
        else:
            moment = state["moment"].mul_(beta1).add_(update, alpha=1 - beta1)
        if matrix:
            residual = update.sub_(moment).square_().add_(eps2)
            _average(state["residual_row"], state["residual_column"], residual, beta3, over)
            moment = _inverse_root(state["residual_row"], state["residual_column"], over).mul_(moment)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(moment.view(weight.shape), alpha=-group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every tensor keeps its dtype, of which torch would make the parameter's."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, mine, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[p][name] = value.to(p.device, copy=True)


def _shards(p: Tensor) -> "dist.ProcessGroup | None":
    """The processes that share a parameter row by row; None for a whole one, ValueError if it is cut otherwise."""
    if not isinstance(p, DTensor):
        return None
    if p.device_mesh.ndim != 1 or not p.placements[0].is_shard(0):
        raise ValueError(f"CAME steps parameters that are sharded along their first axis, got {p.placements}")
    return p.device_mesh.get_group()


def _sum(x: Tensor, over: "dist.ProcessGroup | None") -> Tensor:
    """x, summed in place over the processes."""
    if over is not None:
        dist.all_reduce(x, group=over)
    return x


def here(x: Any) -> Any:
    """The part of a tensor that lies in this process: all of it, unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def _initial(weight: Tensor, matrix: bool, coded: bool) -> dict[str, Tensor]:
    flat = weight.flatten(1) if matrix else weight

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=weight.device)

    first = {"moment": zeros(*flat.shape)}
    if coded:
        first = {"codes": zeros(*flat.shape, dtype=torch.int8), "scales": zeros(blocks(weight.numel()))}
    if not matrix:
        return first | {"square": zeros(*flat.shape)}
    R, C = flat.shape
    rows, columns = ("row", "residual_row"), ("column", "residual_column")
    return first | {name: zeros(R) for name in rows} | {name: zeros(C) for name in columns}


def _average(row: Tensor, column: Tensor, square: Tensor, beta: float, over: "dist.ProcessGroup | None") -> None:
    """Running means of a matrix' columns (R,) and rows (C,), of which a process may hold some rows only."""
    rows = _sum(torch.full((), float(len(square)), device=square.device), over)
    row.lerp_(square.mean(1), 1 - beta)
    column.lerp_(_sum(square.sum(0), over) / rows, 1 - beta)


def _inverse_root(row: Tensor, column: Tensor, over: "dist.ProcessGroup | None") -> Tensor:
    """``1 / sqrt(outer(row, column) / mean(row))``.  # (R,), (C,) -> (R, C)"""
    sums = _sum(torch.stack([row.sum(), torch.full((), float(len(row)), device=row.device)]), over)
    return torch.outer((row / (sums[0] / sums[1])).rsqrt_(), column.rsqrt())
