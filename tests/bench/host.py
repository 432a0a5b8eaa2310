"""What the engine's own thread does for 32 candidates of 1.6B at 1,024 px, without the device's work.

The network is left out, and latents on the device are one pixel wide, so that the solver's arithmetic takes no time.
Noise is drawn at its true size.
"""

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from figures import Measured, Table, at_most
from torch import Tensor

from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.random_init.checkpoint import SANA_LAYOUTS
from bestofn.models.solver import solver_table
from bestofn.service.engine.batch_pool import BatchPool
from bestofn.service.engine.batch_sizes import sizes_for
from bestofn.service.engine.cuda_graph import plain
from bestofn.service.engine.prompts import PromptTable
from bestofn.service.engine.scheduler import Group
from bestofn.service.engine.slot_group import SlotGroup

SLOTS, SIDE, STEPS = 32, 1024, 20
FILL_MS, TICK_MS = 5.0, 1.5


def measure(short: bool) -> Measured:
    """Jobs one after the other in the same slots."""
    layout = SANA_LAYOUTS["sana1.5-1.6b"]
    config = LinearDiTConfig.from_dict(layout["transformer"])
    table = solver_table(layout["scheduler"], STEPS, config.timestep_scale)
    narrow = (config.in_channels, 1, 1)

    def noise(seed: int, width: int, height: int, draws: int) -> Tensor:
        source = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(draws, config.in_channels, height // 32, width // 32, generator=source)[..., :1, :1]

    generator: Any = SimpleNamespace(
        config=config, device=torch.device("cpu"), denoiser=torch.nn.Identity(), dtypes={"transformer": torch.bfloat16},
        latent_shape=lambda width, height: narrow, noise=noise,
        output=lambda x, *rest, **options: torch.zeros(len(x), *narrow, dtype=torch.bfloat16),
    )  # fmt: skip
    contexts = [
        PromptContext(torch.zeros(1, 1, 1, 8, 1), torch.zeros(1, 1, 1, 8, 1), torch.zeros(1, 1, 1, 8)) for _ in range(2)
    ]
    prompts, sizes = PromptTable(contexts[0]), sizes_for("cuda")
    group = SlotGroup(generator, Group(SIDE, SIDE), SLOTS, sizes.rows, False, BatchPool(1), prompts, record=plain)
    fills, ticks = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(2 if short else 20):
        begun = time.perf_counter()
        for slot in range(SLOTS):
            group.fill(slot, ("job", 0), slot, slot, table, 4.5, contexts)
        fills.append(1000 * (time.perf_counter() - begun))
        for _ in range(STEPS):
            begun = time.perf_counter()
            group.step()
            ticks.append(1000 * (time.perf_counter() - begun))
        for slot in range(SLOTS):
            group.drop(slot)
    torch.set_num_threads(threads)
    fill, tick = statistics.median(fills), statistics.median(ticks)
    rows = [(f"fill {SLOTS} slots", fill, max(fills)), (f"one step, {2 * SLOTS} rows", tick, max(ticks))]
    return Measured(
        [Table(("", "median ms", "slowest ms"), rows)],
        [
            at_most(f"fill {SLOTS} slots", fill, FILL_MS, "ms"),
            at_most(f"one step, {2 * SLOTS} rows", tick, TICK_MS, "ms"),
        ],
        [],
    )
