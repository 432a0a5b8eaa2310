"""The held-out score of a generator: images of the test prompts, judged by the exact evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import CATEGORIES, BenchmarkPrompt, benchmark_prompts
from bestofn.models.shapes.world import Image

Drawer = Callable[[Sequence[str], Sequence[int]], Sequence[Image]]
"""Prompts and noise seeds to images (64, 64, 3) uint8."""


def spread(per_category: int) -> list[BenchmarkPrompt]:
    """A part of the benchmark: `per_category` prompts of each category, evenly spaced in it."""
    out = []
    for tag in CATEGORIES:
        members = [p for p in benchmark_prompts() if p.spec.tag == tag]
        picks = np.linspace(0, len(members) - 1, min(per_category, len(members))).round().astype(int)
        out += [members[k] for k in picks]
    return out


def score(draw: Drawer, prompts: Sequence[BenchmarkPrompt]) -> dict[str, float]:
    """Share of correct images by category, their mean ("mean"), and the share on held-out ones ("held_out")."""
    images = draw([p.spec.prompt for p in prompts], [p.seed for p in prompts])
    correct = np.array([evaluate(image, p.spec).correct for image, p in zip(images, prompts, strict=True)])
    tags = np.array([p.spec.tag for p in prompts])
    held = np.array([p.held_out for p in prompts])
    out = {tag: float(correct[tags == tag].mean()) for tag in CATEGORIES if (tags == tag).any()}
    out["mean"] = float(np.mean(list(out.values())))
    out["held_out"] = float(correct[held].mean()) if held.any() else float("nan")
    return out
