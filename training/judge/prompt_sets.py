"""Prompts that training images are drawn for, apart from those of the benchmark and of validation.

Noise seeds of the sets never meet: benchmark below 2**40, training from 2**40, calibration from 2**41, validation from
2**43.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np

from bestofn.models.shapes.prompts import (
    CATEGORIES,
    PER_CATEGORY,
    SEED_STRIDE,
    PromptSpec,
    benchmark_prompts,
    calibration_prompts,
    sample_prompt,
)
from bestofn.training.judge.image_pool import DrawJob

TRAINING_SEED, VALIDATION_SEED = 2**40, 2**43

VALIDATION_PER_CATEGORY = 10

PROMPT_WEIGHTS = {
    "colors": 4,
    "counting_color": 6,
    "two_object": 3,
    "color_attr": 5,
    "position": 3,
    "position_color": 4,
}
"""Relative frequency of each category among training prompts.

Every prompt with a single shape or an uncoloured count is in the benchmark, so no training image is drawn for one.
"""

STEPS = (12,) * 6 + (24, 6, 4, 4)
"""Numbers of solver steps of training images, drawn uniformly: the judge also ranks drafts."""

_PROMPTS_A_JOB = 4
_ROUND_SEEDS = 2**32


@cache
def validation_prompts() -> tuple[PromptSpec, ...]:
    """Prompts of the held-out score, none in the benchmark where a category has enough distinct prompts."""
    rng = np.random.default_rng(VALIDATION_SEED)
    seen = {one.spec.prompt for one in benchmark_prompts()}
    out = []
    for tag in CATEGORIES:
        for _ in range(VALIDATION_PER_CATEGORY):
            drawn = [sample_prompt(rng, tag) for _ in range(50)]
            spec = next((spec for spec in drawn if spec.prompt not in seen), drawn[0])
            seen.add(spec.prompt)
            out.append(spec)
    return tuple(out)


@cache
def excluded_prompts() -> frozenset[str]:
    """Prompts that no training image is drawn for: all of the benchmark and of validation."""
    return frozenset(one.spec.prompt for one in benchmark_prompts()) | {one.prompt for one in validation_prompts()}


def training_prompt(rng: np.random.Generator) -> PromptSpec:
    """A random prompt without held-out combinations that is neither in the benchmark nor in validation."""
    tags = [tag for tag, weight in PROMPT_WEIGHTS.items() for _ in range(weight)]
    while True:
        spec = sample_prompt(rng, tags[int(rng.integers(len(tags)))])
        if spec.prompt not in excluded_prompts():
            return spec


def random_jobs(seed: int, prompts: int, images: int) -> list[DrawJob]:
    """Jobs of round 0: four prompts each, `images` images of every prompt."""
    rng = np.random.default_rng((TRAINING_SEED, seed, 0))
    jobs = []
    for start in range(0, prompts, _PROMPTS_A_JOB):
        specs = [training_prompt(rng) for _ in range(min(_PROMPTS_A_JOB, prompts - start))]
        rows = tuple(spec for spec in specs for _ in range(images))
        first = _first_seed(seed, 0) + start * images
        jobs.append(DrawJob(rows, tuple(range(first, first + len(rows))), STEPS[int(rng.integers(len(STEPS)))]))
    return jobs


def adversarial_jobs(seed: int, number: int, prompts: int, images: int) -> list[DrawJob]:
    """Jobs of an adversarial round: one prompt each, `images` images of it."""
    rng = np.random.default_rng((TRAINING_SEED, seed, number))
    out = []
    for k in range(prompts):
        spec, steps = training_prompt(rng), STEPS[int(rng.integers(len(STEPS)))]
        out.append(DrawJob.one_prompt(spec, _first_seed(seed, number) + k * images, images, steps))
    return out


def validation_jobs(per_category: int, images: int, steps: int) -> list[DrawJob]:
    """Jobs of the held-out score: one prompt each, the first `per_category` of every category."""
    return [
        DrawJob.one_prompt(spec, VALIDATION_SEED + k * SEED_STRIDE, images, steps)
        for k, spec in enumerate(validation_prompts())
        if k % VALIDATION_PER_CATEGORY < per_category
    ]


def calibration_jobs(per_category: int, images: int, steps: int, trained: Collection[str]) -> list[DrawJob]:
    """Jobs of the calibration: one prompt each, the first `per_category` of every category; none of those trained."""
    return [
        DrawJob.one_prompt(one.spec, one.seed, images, steps)
        for k, one in enumerate(calibration_prompts(trained))
        if k % PER_CATEGORY < per_category
    ]


def _first_seed(seed: int, number: int) -> int:
    return TRAINING_SEED + (seed % 16 * 16 + number) * _ROUND_SEEDS
