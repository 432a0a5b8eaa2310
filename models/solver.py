"""Solvers as tables: one row of coefficients a step, so that slots at different steps share one update.

Every solver here is linear in the sample, the model's output, the last two data predictions and fresh noise::

    F    = network(k_i x, t_i)                      k: input scale
    m_i  = p_i x + q_i F                            the data prediction (x0)
    x'   = a_i x + b_i m_i + c_i m_{i-1} + n_i z    z: fresh noise, only where n is not 0

so a table of (t, k, p, q, a, b, c, n) is the whole solver. S steps, B slots, C channels, (h, w) latent grid.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bestofn.models.errors import UnsupportedScheduler
from bestofn.models.scm import scm_rows

DPM, EULER, SCM = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "SCMScheduler"
COLUMNS = ("timestep", "input_scale", "sample", "output", "keep", "data", "previous", "noise")


@dataclass(frozen=True)
class SolverTable:
    """A solver's coefficients at a fixed number of steps.

    Attributes:
        rows: (S, 8) float32 on the CPU, columns as in `COLUMNS`.
        sigmas: (S + 1,) noise levels, the last one 0; informative.
    """

    rows: Tensor
    sigmas: Tensor

    @property
    def steps(self) -> int:
        """S."""
        return self.rows.shape[0]

    @property
    def timesteps(self) -> Tensor:
        """(S,), as the scheduler counts."""
        return self.rows[:, 0]

    @property
    def noise_draws(self) -> int:
        """How often fresh noise enters after the start: z of steps 0 .. draws - 1."""
        used = self.rows[:, 7].nonzero()
        return int(used.max()) + 1 if len(used) else 0


@dataclass(frozen=True)
class StepCoefficients:
    """Rows of solver tables for a batch of slots, ready to broadcast over latents.

    Attributes:
        timestep: (B,).
        input_scale, sample, output, keep, data, previous, noise: (B, 1, 1, 1).
    """

    timestep: Tensor
    input_scale: Tensor
    sample: Tensor
    output: Tensor
    keep: Tensor
    data: Tensor
    previous: Tensor
    noise: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "StepCoefficients":
        """From table rows (B, 8), one a slot; slots may use different tables."""
        timestep, *others = rows.unbind(dim=1)
        return cls(timestep, *(column[:, None, None, None] for column in others))


def solver_step(
    x: Tensor, previous: Tensor, output: Tensor, at: StepCoefficients, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of every slot at once.

    Args:
        x: (B, C, h, w) float32 samples.
        previous: (B, C, h, w) float32, each slot's last data prediction (anything finite at its first step).
        output: (B, C, h, w), the network's output after guidance.
        at: the slots' coefficients.
        noise: (B, C, h, w) float32 fresh noise; None when no slot's table draws any.

    Returns:
        The next samples and the data predictions, both (B, C, h, w) float32. After a table's last row the sample is
        the finished latent.
    """
    m = at.sample * x + at.output * output.float()
    following = at.keep * x + at.data * m + at.previous * previous
    return (following if noise is None else following + at.noise * noise), m


def solver_table(config: dict[str, Any], steps: int, timestep_scale: float = 1.0) -> SolverTable:
    """Read the solver off a diffusers ``scheduler_config.json``.

    Args:
        config: the parsed file; ``_class_name`` chooses the algorithm.
        steps: S, at least 1.
        timestep_scale: the transformer's; multiplies the timesteps (but not SCM's, as in diffusers).

    Raises:
        UnsupportedScheduler: naming the setting that is not implemented.
    """
    name = config.get("_class_name")
    if steps < 1:
        raise UnsupportedScheduler(f"a solver takes at least 1 step, got {steps}")
    if name == DPM:
        sigmas, timesteps = _dpm_sigmas(config, steps)
        updates = _dpm_updates(config, sigmas)
    elif name == EULER:
        sigmas, timesteps = _euler_sigmas(config, steps)
        updates = [(after / now, 1 - after / now, 0.0) for now, after in itertools.pairwise(sigmas)]
    elif name == SCM:
        _require(config, {"prediction_type": ("trigflow", ("trigflow",))})
        if steps > _positive(config, "num_train_timesteps", 1000):
            raise UnsupportedScheduler(f"SCMScheduler takes at most num_train_timesteps steps, got {steps}")
        angles, rows = scm_rows(steps)
        return SolverTable(torch.tensor(rows, dtype=torch.float32), torch.tensor(angles, dtype=torch.float32))
    else:
        raise UnsupportedScheduler(f"scheduler {name!r} is not supported, only {DPM}, {EULER} and {SCM}")
    rows = [
        (t * timestep_scale, 1.0, 1.0, -sigma, *update, 0.0)
        for t, sigma, update in zip(timesteps, sigmas, updates, strict=False)
    ]
    return SolverTable(torch.tensor(rows, dtype=torch.float32), torch.tensor(sigmas, dtype=torch.float32))


def _require(config: dict[str, Any], allowed: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Check fields against (diffusers default, implemented values)."""
    for field, (default, values) in allowed.items():
        value = config.get(field, default)
        if value not in values:
            only = " or ".join(repr(v) for v in values)
            raise UnsupportedScheduler(f"{config['_class_name']}: {field} = {value!r} is not supported, only {only}")


def _positive(config: dict[str, Any], field: str, default: int | float) -> Any:
    value = config.get(field, default)
    whole = isinstance(default, int)
    if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < math.inf:
        wanted = "a whole number above 0" if whole else "a finite number above 0"
        raise UnsupportedScheduler(f"{config['_class_name']}: {field} = {value!r}, {wanted} is needed")
    return value


def _shift(sigma: float, shift: float) -> float:
    """Move noise levels upwards: sigma' = s sigma / (1 + (s - 1) sigma) (SD3, arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _linspace(start: float, stop: float, count: int) -> list[float]:
    """numpy.linspace with its rounding: timesteps are truncated to integers, so the last bit matters."""
    step = (stop - start) / (count - 1) if count > 1 else 0.0
    return [i * step + start for i in range(count - 1)] + [stop] if count > 1 else [start]


def _float32(values: list[float]) -> list[float]:
    return [float(v) for v in torch.tensor(values, dtype=torch.float32)]


def _dpm_sigmas(config: dict[str, Any], steps: int) -> tuple[list[float], list[float]]:
    _require(
        config,
        {
            "prediction_type": ("epsilon", ("flow_prediction",)),
            "use_flow_sigmas": (False, (True,)),
            "algorithm_type": ("dpmsolver++", ("dpmsolver++",)),
            "solver_order": (2, (1, 2)),
            "solver_type": ("midpoint", ("midpoint", "heun")),
            "final_sigmas_type": ("zero", ("zero",)),
            "thresholding": (False, (False,)),
            "use_karras_sigmas": (False, (False,)),
            "use_exponential_sigmas": (False, (False,)),
            "use_beta_sigmas": (False, (False,)),
            "use_lu_lambdas": (False, (False,)),
            "use_dynamic_shifting": (False, (False,)),
        },
    )
    train, shift = _positive(config, "num_train_timesteps", 1000), _positive(config, "flow_shift", 1.0)
    levels = [_shift(1.0 - alpha, shift) for alpha in _linspace(1.0, 1 / train, steps + 1)]
    sigmas = levels[:0:-1]
    return _float32([*sigmas, 0.0]), [float(int(sigma * train)) for sigma in sigmas]


def _dpm_updates(config: dict[str, Any], sigmas: list[float]) -> list[tuple[float, float, float]]:
    """(a, b, c) of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) on the flow alpha = 1 - sigma.

    With lambda = log(alpha / sigma), h = lambda' - lambda and r = h_{-1} / h, of the data predictions m and m_{-1}::

        first order     x' = (sigma' / sigma) x + A m                      A = alpha' (1 - e^-h)
        midpoint        x' = (sigma' / sigma) x + A m + A / 2 D            D = (m - m_{-1}) / r
        heun            x' = (sigma' / sigma) x + A m + alpha' ((e^-h - 1) / h + 1) D
    """
    order, steps = config.get("solver_order", 2), len(sigmas) - 1
    heun = config.get("solver_type", "midpoint") == "heun"
    updates: list[tuple[float, float, float]] = []
    last_h = math.nan
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        if after == 0.0:  # e^-h = 0: the data prediction itself
            updates.append((0.0, 1.0, 0.0))
            continue
        h = math.log((1 - after) / after) - math.log((1 - sigma) / sigma)
        decay = math.expm1(-h)
        first = -(1 - after) * decay
        if order == 1 or i == 0:
            updates.append((after / sigma, first, 0.0))
        else:
            second = (1 - after) * (decay / h + 1.0) if heun else 0.5 * first
            slope = second * h / last_h
            updates.append((after / sigma, first + slope, -slope))
        last_h = h
    assert len(updates) == steps
    return updates


def _euler_sigmas(config: dict[str, Any], steps: int) -> tuple[list[float], list[float]]:
    _require(
        config,
        {
            "use_dynamic_shifting": (False, (False,)),
            "shift_terminal": (None, (None, 0, 0.0)),
            "invert_sigmas": (False, (False,)),
            "use_karras_sigmas": (False, (False,)),
            "use_exponential_sigmas": (False, (False,)),
            "use_beta_sigmas": (False, (False,)),
            "stochastic_sampling": (False, (False,)),
        },
    )
    train, shift = _positive(config, "num_train_timesteps", 1000), _positive(config, "shift", 1.0)
    # diffusers shifts twice: the range ends at the shifted lowest training level, and every level is shifted again
    ends = torch.tensor([train, 1], dtype=torch.float32) / train
    highest, lowest = (float(v) for v in shift * ends / (1 + (shift - 1) * ends))
    times = _linspace(highest * train, lowest * train, steps)
    sigmas = _float32([*(_shift(t / train, shift) for t in times), 0.0])
    return sigmas, _float32([float(torch.tensor(s, dtype=torch.float32) * train) for s in sigmas[:-1]])
