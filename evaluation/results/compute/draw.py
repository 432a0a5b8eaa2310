"""Tables and plot of the compute study, from the pools of this folder.

`python evaluation/results/compute/draw.py` prints the tables and draws compute.png.
"""

import json
import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from bestofn.evaluation.curve import auc
from bestofn.evaluation.pool import Pool, Samples, SamplingConfig
from bestofn.evaluation.report import HEAT, foretold
from bestofn.evaluation.stats import Floats, Prompts
from bestofn.evaluation.tasks import benchmark
from bestofn.judge.judge import Judge
from bestofn.models.flops import TERA
from bestofn.models.generator import Generator

HERE = Path(__file__).parent
WHOLE, STEPS, SAMPLES = 6, 12, 32
WHOLE_POOL = HERE / f"layers-{WHOLE}.jsonl"  # with drafts
SIZES = (1, 2, 4, 8, 16, 32)
KEPT = 2  # drafts of 16 that are solved in full
COLOURS = {6: "#222222", 5: "#d49a1e", 4: "#3a6ea5", 3: "#7aa874"}


def price(layers: int, n: float, steps: int = STEPS) -> float:
    """TFLOP of best of n by the shipped checkpoint with this number of layers."""
    text, step, verdict = prices(layers)
    return text + n * (steps * step + verdict)


@cache
def prices(layers: int) -> tuple[float, float, float]:
    """TFLOP of a prompt's text, of one step of a candidate (guidance included), of a decoded and judged image."""
    generator, judge = Generator.load("shapes"), Judge.load()
    side = generator.defaults.width
    flops = generator.flops(side, side, layers)
    verdict = flops.decode + judge.flops(side, side)
    return 2 * flops.text / TERA, 2 * flops.forward / TERA, verdict / TERA


def pools() -> dict[int, Samples]:
    """Of each depth, the deepest first; the whole model's on the prompts that some other has."""
    files = {layers: HERE / f"layers-{layers}.jsonl" for layers in range(WHOLE - 1, 0, -1)}
    found = {
        layers: Pool.of_benchmark(path).samples(SamplingConfig(STEPS), SAMPLES)
        for layers, path in files.items()
        if path.exists()
    }
    asked = sorted(set().union(*(samples.numbers for samples in found.values())))
    return {WHOLE: Pool.of_benchmark(WHOLE_POOL).samples(SamplingConfig(STEPS), SAMPLES).of(asked, SAMPLES)} | found


def tags(samples: Samples) -> Prompts:
    """Its prompts by category."""
    return Prompts([benchmark()[number].tag for number in samples.numbers])


def best_of(samples: Samples, score: Floats, n: int) -> Floats:
    """Chance that the best-scored of n of the S samples is correct, over all choices of n.  # (P,)"""
    S = score.shape[1]
    order = np.argsort(-score, axis=1, kind="stable")
    # choices of n whose best is the sample of rank r: n - 1 of the S - 1 - r behind it
    chances = np.array([math.comb(S - 1 - r, n - 1) / math.comb(S, n) for r in range(S)])
    return np.asarray(np.take_along_axis(samples.correct, order, 1) @ chances)


def main() -> None:
    for line in tables():
        sys.stdout.write(line + "\n")
    draw(pools())


def tables() -> Iterator[str]:
    """All tables of the page, in its order."""
    of_depths = pools()
    yield from against_n(of_depths)
    yield ""
    yield from against_compute(of_depths)
    yield ""
    yield from to_match(of_depths)
    yield ""
    yield from drafts(of_depths)


def against_n(of_depths: dict[int, Samples]) -> Iterator[str]:
    """Scores against N."""
    yield row(
        "layers",
        "prompts",
        "TFLOP a candidate",
        *(f"best of {n}" for n in SIZES),
        f"oracle, {SAMPLES}",
        "right above wrong",
    )
    yield row(*["---"] * (len(SIZES) + 5))
    for layers, samples in of_depths.items():
        prompts = tags(samples)
        scores = [prompts.mean(best_of(samples, samples.margin, n)) for n in SIZES]
        oracle = prompts.mean(best_of(samples, samples.correct, SAMPLES))
        a_candidate = price(layers, 1) - price(layers, 0)
        ordered = auc(samples.correct, samples.margin)
        told = [f"{value:.3f}" for value in (*scores, oracle, ordered)]
        yield row(str(layers), str(len(samples.numbers)), f"{a_candidate:.5f}", *told)


def against_compute(of_depths: dict[int, Samples]) -> Iterator[str]:
    """For the TFLOPs of the whole model's best of N: what a shallower one makes of them, on the prompts that it has."""
    yield row("layers", "who chooses", *(f"as best of {n}" for n in SIZES[:-1]))
    yield row(*["---"] * (len(SIZES) + 1))
    for layers, samples in of_depths.items():
        if layers == WHOLE:
            continue
        prompts, whole = tags(samples), of_depths[WHOLE].of(samples.numbers, SAMPLES)
        more = [max(m for m in range(1, SAMPLES + 1) if m == 1 or affords(layers, m, n)) for n in SIZES[:-1]]
        for chooser in ("margin", "correct"):
            cells = []
            for n, m in zip(SIZES, more, strict=False):
                gain = best_of(samples, getattr(samples, chooser), m) - best_of(whole, getattr(whole, chooser), n)
                low, high = prompts.interval(gain)
                cells.append(f"best of {m}: {prompts.mean(gain):+.3f} ({low:+.3f} to {high:+.3f})")
            yield row(str(layers), "judge" if chooser == "margin" else "oracle", *cells)


def affords(layers: int, m: int, n: int) -> bool:
    """Whether best of m with this number of layers costs no more than best of n with all."""
    return price(layers, m) <= price(WHOLE, n)


def to_match(of_depths: dict[int, Samples]) -> Iterator[str]:
    """How many samples, and how many times the TFLOPs, a shallower model takes for the whole model's score."""
    yield row("layers", *(f"to match best of {n}" for n in SIZES[:-1]))
    yield row(*["---"] * len(SIZES))
    for layers, samples in of_depths.items():
        if layers == WHOLE:
            continue
        prompts, whole, cells = tags(samples), of_depths[WHOLE].of(samples.numbers, SAMPLES), []
        for n in SIZES[:-1]:
            goal = prompts.mean(best_of(whole, whole.margin, n))
            scores = (prompts.mean(best_of(samples, samples.margin, m)) for m in range(1, SAMPLES + 1))
            m = next((m for m, score in enumerate(scores, 1) if score >= goal), None)
            times = "" if m is None else price(layers, m) / price(WHOLE, n)
            cells.append(f"over {SAMPLES}" if m is None else f"best of {m}, {times:.1f} x")
        yield row(str(layers), *cells)


def drafts(of_depths: dict[int, Samples]) -> Iterator[str]:
    """How well drafts foretell the full solutions of 16 candidates, and what their jobs bring."""
    files = sorted(HERE.glob("drafts-*.json"), reverse=True)
    if not files:
        return
    margins = {tuple(map(int, file.stem.split("-")[1:])): json.loads(file.read_text()) for file in files}
    numbers = sorted(map(int, next(iter(margins.values()))))
    whole = Pool.of_benchmark(WHOLE_POOL)
    full = whole.samples(SamplingConfig(STEPS), HEAT).of(numbers, HEAT)
    looks: dict[str, tuple[float, Floats]] = {}
    for steps in (6, 4, 3):
        looks[f"6 layers, {steps} steps"] = (
            price(WHOLE, 1, steps), whole.samples(SamplingConfig(steps), HEAT).of(numbers, HEAT).margin
        )  # fmt: skip
    for (layers, steps), told in margins.items():
        margin = np.array([told[str(number)] for number in numbers])
        looks[f"{layers} layers, {steps} steps"] = price(layers, 1, steps), margin
    for layers, samples in of_depths.items():
        if layers != WHOLE and set(numbers) <= set(samples.numbers):
            looks[f"{layers} layers trained further, {STEPS} steps"] = (
                price(layers, 1), samples.of(numbers, HEAT).margin
            )  # fmt: skip
    prompts = tags(full)
    yield row("draft", "rank correlation", "keeps the best in 1", "in 2", "in 4", "score", "TFLOP of the job")
    yield row(*["---"] * 7)
    for name, (cost, draft) in looks.items():
        prediction = foretold(full.margin, draft)
        text = price(WHOLE, 0)
        job = text + HEAT * (cost - text) + price(WHOLE, KEPT) - text
        kept = np.argsort(-draft, axis=1, kind="stable")[:, :KEPT]
        finals = np.take_along_axis(full.margin, kept, 1).argmax(1)[:, None]
        winners = np.take_along_axis(kept, finals, 1)
        score = prompts.mean(np.take_along_axis(full.correct, winners, 1)[:, 0])
        shares = [f"{prediction.retention[k]:.2f}" for k in (1, 2, 4)]
        yield row(name, f"{prediction.spearman:.2f}", *shares, f"{score:.3f}", f"{job:.3f}")
    for n in (4, 8, HEAT):
        score = prompts.mean(best_of(full, full.margin, n))
        yield row(f"none: best of {n}", "", "", "", "", f"{score:.3f}", f"{price(WHOLE, n):.3f}")


def draw(of_depths: dict[int, Samples]) -> None:
    """Score against N, and against TFLOPs."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for layers, samples in of_depths.items():
        prompts = tags(samples)
        judge = [prompts.mean(best_of(samples, samples.margin, n)) for n in range(1, SAMPLES + 1)]
        oracle = [prompts.mean(best_of(samples, samples.correct, n)) for n in range(1, SAMPLES + 1)]
        n = np.arange(1, SAMPLES + 1)
        work = [price(layers, m) for m in n]
        for axis, x in ((left, n), (right, work)):
            axis.plot(x, judge, color=COLOURS[layers], label=f"{layers} layers")
            axis.plot(x, oracle, color=COLOURS[layers], lw=0.8, ls=":")
    for axis, name in ((left, "N, candidates of a prompt"), (right, "TFLOP of a prompt")):
        axis.set_xscale("log", base=2 if axis is left else 10)
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
    left.set_ylabel("share of correct winners (dotted: oracle)")
    left.legend(loc="lower right")
    figure.savefig(HERE / "compute.png", dpi=130)
    pyplot.close(figure)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
