"""Compares the shipped judge with the one before it on 32 candidates for each prompt of the benchmark.

`python evaluation/results/judge/compare.py` prints the table from margins.npz. With two pools as arguments, of the
judge before and of the shipped one, it first writes margins.npz from them. `bestofn eval --latents` makes such pools.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bestofn.evaluation.curve import auc, curve, of_chosen, share_of_the_way
from bestofn.evaluation.pool import Pool, SamplingConfig
from bestofn.evaluation.stats import Prompts
from bestofn.evaluation.tasks import benchmark

HERE = Path(__file__).parent
MARGINS = HERE / "margins.npz"
JUDGES = ("before", "shipped")
SAMPLES, STEPS = 32, 12
TASKS = benchmark()
PROMPTS = Prompts([task.tag for task in TASKS])


def measure(pools: Sequence[str]) -> None:
    """Write margins.npz from two pools of `bestofn eval` with the same latents, judged by both."""
    before, shipped = (Pool.of_benchmark(Path(path)).samples(SamplingConfig(STEPS), SAMPLES) for path in pools)
    margins = {name: one.margin.astype(np.float32) for name, one in zip(JUDGES, (before, shipped), strict=True)}
    np.savez_compressed(MARGINS, correct=before.correct > 0, **margins)


def table() -> Iterator[str]:
    """Lines: score against N, and the paired interval of the difference."""
    with np.load(MARGINS) as file:
        correct, margins = file["correct"].astype(float), {name: file[name] for name in JUDGES}
    tags, held_out = [task.tag for task in TASKS], np.array([task.held_out for task in TASKS])
    numbers = [point.n for point in curve(correct, correct, tags)]
    yield f"| judge | {' | '.join(map(str, numbers))} | of the way | AUC | held out, {SAMPLES} |"
    yield "|---" * (len(numbers) + 4) + "|"
    for name, margin in margins.items():
        points = curve(correct, margin, tags)
        scores = " | ".join(f"{point.judge:.3f}" for point in points)
        held = of_chosen(correct, margin, SAMPLES)[held_out].mean()
        yield f"| {name} | {scores} | {share_of_the_way(points):.0%} | {auc(correct, margin):.3f} | {held:.3f} |"
    yield f"| oracle | {' | '.join(f'{point.oracle:.3f}' for point in points)} | 100 % | 1 | |"
    shipped, before = (of_chosen(correct, margins[name], SAMPLES) for name in ("shipped", "before"))
    low, high = PROMPTS.interval(shipped - before)
    yield f"\nshipped - before at N = {SAMPLES}: {PROMPTS.mean(shipped - before):+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1:])
    sys.stdout.writelines(f"{line}\n" for line in table())
