"""A pool of a generator's pictures for training prompts, which a judge learns to tell apart."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.models.generator import Generator
from bestofn.models.guidance import guide
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.shapes.prompts import PromptSpec, sample_prompt
from bestofn.models.solver import StepCoefficients, solver_step
from bestofn.training.judge.dataset import Generated

TAGS = {
    "single_object": 1,
    "colors": 2,
    "counting": 3,
    "counting_color": 1,
    "two_object": 3,
    "color_attr": 4,
    "position": 4,
    "position_color": 2,
}
"""How often each kind of prompt is drawn: the harder, the more."""

FIRST_SEED = 2**40
"""Noise seeds of pools start here, far from those of the test prompts."""

BATCH = 16


def draw_pool(
    generator: Generator, path: Path, prompts: int, samples: int, seed: int, progress: Callable[[int, int], None]
) -> list[Generated]:
    """Draws pictures for random training prompts, or reads them back if the file holds them already.

    Args:
        generator: the checkpoint, at its call defaults.
        path: of the file that keeps them.
        prompts: number of prompts.
        samples: pictures of each.
        seed: of the choice of prompts and of the noise.
        progress: called with pictures drawn and wanted.
    """
    if path.is_file():
        return read_pool(path)
    rng = np.random.default_rng((seed, FIRST_SEED))
    tags = [tag for tag, n in TAGS.items() for _ in range(n)]
    drawn = [sample_prompt(rng, tags[int(rng.integers(len(tags)))]) for _ in range(prompts)]
    specs = [spec for spec in drawn for _ in range(samples)]
    pictures: list[NDArray[np.uint8]] = []
    for start in range(0, len(specs), BATCH):
        share = specs[start : start + BATCH]
        first = FIRST_SEED + seed * 10**6 + start
        pictures += list(draw(generator, share, list(range(first, first + len(share)))))
        progress(len(pictures), len(specs))
    lines = np.array([json.dumps(spec.to_json()) for spec in specs])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, pictures=np.stack(pictures), specs=lines)
    os.replace(part, path)
    return [Generated.of(picture, spec) for picture, spec in zip(pictures, specs, strict=True)]


def read_pool(path: Path) -> list[Generated]:
    """The pictures of a file that `draw_pool` wrote, looked at by the evaluator."""
    with np.load(path) as kept:
        pictures, lines = kept["pictures"], kept["specs"]
    specs = [PromptSpec.from_json(json.loads(line)) for line in lines]
    return [Generated.of(picture, spec) for picture, spec in zip(pictures, specs, strict=True)]


@torch.inference_mode()
def draw(generator: Generator, specs: list[PromptSpec], seeds: list[int]) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3) of B prompts, one seed each, in one batch at the checkpoint's call defaults."""
    defaults = generator.defaults
    table = generator.solver_table(defaults.num_inference_steps)
    distinct = list(dict.fromkeys(spec.prompt for spec in specs))
    contexts = generator.prompt_contexts([*((prompt, False) for prompt in distinct), ("", True)])
    rows = [distinct.index(spec.prompt) for spec in specs] + [len(distinct)] * len(specs)
    context = PromptContext.stack(contexts).select(rows)
    B = len(specs)
    x = torch.cat([generator.noise(seed, defaults.width, defaults.height) for seed in seeds])
    previous = torch.zeros_like(x)
    scale = torch.full((2 * B,), defaults.guidance_scale)
    for i in range(table.steps):
        at = StepCoefficients.of(table.rows[i : i + 1].expand(2 * B, -1))
        bound, free = generator.output(torch.cat([x, x]), at, context, scale).chunk(2)
        here = StepCoefficients.of(table.rows[i : i + 1].expand(B, -1))
        x, previous = solver_step(x, previous, guide(bound, free, scale[:B]), here, None)
    return generator.decode(x).numpy()
