"""Solver tables against diffusers' schedulers, whole trajectories with a made-up velocity field."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler

from bestofn.models.errors import UnsupportedScheduler
from bestofn.models.solver import StepCoefficients, solver_step, solver_table

# diffusers' own numpy spelling
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SANA = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "sana": (DPMSolverMultistepScheduler, SANA),
    "first_order": (DPMSolverMultistepScheduler, SANA | {"solver_order": 1}),
    "heun_unshifted": (DPMSolverMultistepScheduler, SANA | {"solver_type": "heun", "flow_shift": 1.0}),
    "euler": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    "euler_unshifted": (FlowMatchEulerDiscreteScheduler, {}),
}
STEPS = (1, 2, 4, 10, 20, 50)


def config_of(scheduler):
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


def field(x, t):
    """A smooth, nonlinear stand-in for the network."""
    return torch.sin(3 * x) + x * (t.float() / 1000).reshape(-1, 1, 1, 1)


def relative_error(got, wanted):
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_same_trajectory_as_diffusers(name, steps):
    kind, settings = SCHEDULERS[name]
    scheduler = kind(**settings)
    scheduler.set_timesteps(steps)
    table = solver_table(config_of(scheduler), steps)
    assert torch.equal(table.timesteps, scheduler.timesteps.float())
    wanted = got = torch.randn(2, 4, 3, 3)
    previous = torch.zeros_like(got)
    for i, t in enumerate(scheduler.timesteps):
        wanted = scheduler.step(field(wanted, t), t, wanted, return_dict=False)[0]
        at = StepCoefficients.of(table.rows[[i, i]])
        got, previous = solver_step(got, previous, field(got, at.timestep), at)
        assert relative_error(got, wanted) < 2e-5  # rounding, carried along up to 50 steps
    assert table.noise_draws == 0


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
def test_same_timesteps_as_diffusers_at_every_count(shift):
    dpm = DPMSolverMultistepScheduler(**(SANA | {"flow_shift": shift}))
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in range(1, 101):
        for scheduler in (dpm, euler):
            scheduler.set_timesteps(steps)
            table = solver_table(config_of(scheduler), steps)
            assert torch.equal(table.timesteps, scheduler.timesteps.float()), steps
            assert torch.allclose(table.sigmas, scheduler.sigmas, rtol=1e-6, atol=0), steps


@pytest.mark.parametrize("steps", STEPS)
def test_scm_is_diffusers_sprint_loop(steps):
    """The loop of diffusers' SanaSprintPipeline, step by step, with the candidate's own generator."""
    scheduler, data = SCMScheduler(), 0.5
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None, max_timesteps=1.57080)
    generator = torch.Generator("cpu").manual_seed(5)
    start = torch.randn(1, 4, 3, 3, generator=generator)
    x = start * data
    for u in scheduler.timesteps[:-1]:
        t = (u.sin() / (u.cos() + u.sin())).view(1, 1, 1, 1)
        r = (t**2 + (1 - t) ** 2).sqrt()
        scaled = x / data * r
        v = ((1 - 2 * t) * scaled + (1 - 2 * t + 2 * t**2) * field(scaled, t)) / r * data
        x, denoised = scheduler.step(v, u, x, generator=generator, return_dict=False)
    wanted = denoised / data

    table = solver_table(config_of(scheduler), steps)
    generator = torch.Generator("cpu").manual_seed(5)
    got = torch.randn(1, 4, 3, 3, generator=generator)
    previous = torch.zeros_like(got)
    for i in range(steps):
        at = StepCoefficients.of(table.rows[i : i + 1])
        noise = torch.randn(1, 4, 3, 3, generator=generator) if i < table.noise_draws else None
        got, previous = solver_step(got, previous, field(at.input_scale * got, at.timestep), at, noise)
    assert table.noise_draws == steps - 1
    assert relative_error(got, wanted) < 2e-5


def test_slots_at_different_steps_of_different_solvers_share_an_update():
    tables = [solver_table({"_class_name": "DPMSolverMultistepScheduler"} | SANA, steps) for steps in (4, 20)]
    tables.append(solver_table({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 10))
    rows = torch.stack([tables[0].rows[3], tables[1].rows[7], tables[2].rows[0]])
    x, previous, v = (torch.randn(3, 4, 3, 3) for _ in range(3))
    together = solver_step(x, previous, v, StepCoefficients.of(rows))
    for i in range(3):
        at = StepCoefficients.of(rows[i : i + 1])
        alone = solver_step(x[i : i + 1], previous[i : i + 1], v[i : i + 1], at)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "scheduler 'DDIMScheduler' is not supported"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "prediction_type = 'epsilon' is not supported"),
        ({"_class_name": "DPMSolverMultistepScheduler", **SANA, "solver_order": 3}, "solver_order = 3"),
        ({"_class_name": "DPMSolverMultistepScheduler", **SANA, "use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1}, "shift_terminal = 0.1"),
        ({"_class_name": "SCMScheduler", "prediction_type": "epsilon"}, "prediction_type = 'epsilon'"),
    ],
)
def test_unsupported_setting_is_named(config, message):
    with pytest.raises(UnsupportedScheduler, match=message):
        solver_table(config, 4)
