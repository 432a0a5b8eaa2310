"""Compares the shipped judge with the one before it on 32 candidates for each prompt of the benchmark.

`python evaluation/results/judge/compare.py` prints the table from margins.npz. With a folder as argument it draws the
candidates into it, judges them with both, and writes margins.npz again: about 15 minutes of one core.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.evaluation.curve import auc, curve, share_of_the_way
from bestofn.evaluation.stats import Prompts
from bestofn.evaluation.tasks import benchmark
from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import benchmark_prompts
from bestofn.training.judge.drawing import Drawer
from bestofn.training.judge.image_pool import DrawJob, fill_pool

HERE = Path(__file__).parent
MARGINS = HERE / "margins.npz"
JUDGES = {"before": HERE / "before", "shipped": EMBEDDED}
SAMPLES, STEPS = 32, 12
TASKS = benchmark()
PROMPTS = Prompts([task.tag for task in TASKS])


def measure(folder: Path) -> None:
    """Draw, label and judge the candidates, and write margins.npz."""
    jobs = [DrawJob.one_prompt(prompt.spec, prompt.seed, SAMPLES, STEPS) for prompt in benchmark_prompts()]
    settings = {"prompts": "benchmark", "images": SAMPLES, "steps": STEPS}
    pool = fill_pool(folder, jobs, settings, lambda: Drawer("shapes"), lambda *_: None)
    correct = np.array([[evaluate(*pair).correct for pair in zip(j.images, j.specs, strict=True)] for j in pool])
    found = {}
    for name, judge in JUDGES.items():
        loaded = Judge.load(judge)
        verdicts = [loaded.judge(list(job.images), [spec.prompt for spec in job.specs]) for job in pool]
        found[name] = np.array([[one.margin for one in row] for row in verdicts], np.float32)
    np.savez_compressed(MARGINS, correct=correct, before=found["before"], shipped=found["shipped"])


def chosen(margin: NDArray[np.float32], correct: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whether the candidate with the greatest margin is right, of each prompt.  # (P, N), (P, N) -> (P,)"""
    return np.take_along_axis(correct, margin.argmax(1)[:, None], 1)[:, 0]


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
        held = chosen(margin, correct)[held_out].mean()
        yield f"| {name} | {scores} | {share_of_the_way(points):.0%} | {auc(correct, margin):.3f} | {held:.3f} |"
    yield f"| oracle | {' | '.join(f'{point.oracle:.3f}' for point in points)} | 100 % | 1 | |"
    gain = chosen(margins["shipped"], correct) - chosen(margins["before"], correct)
    low, high = PROMPTS.interval(gain)
    yield f"\nshipped - before at N = {SAMPLES}: {PROMPTS.mean(gain):+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    sys.stdout.writelines(f"{line}\n" for line in table())
