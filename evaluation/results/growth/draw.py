"""Tables and plots of docs/research/growth.md from runs.jsonl: `python evaluation/results/growth/draw.py`."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

FOLDER = Path(__file__).parent
GOLD, GREY = "#d49a1e", "#888888"
ARMS = {
    "scratch": (GREY, "-"),
    "partial, 2 dropped": (GOLD, "-"),
    "partial, 0 dropped": (GOLD, "--"),
    "partial, longer source": ("#b03a2e", "-"),
    "cyclic": ("#3a6ea5", "--"),
    "block": ("#7aa874", "--"),
}
CHOICES = {"importance": "most important", "last": "first", "random": "random"}
BUDGETS = 200, 400, 800
Curve = list[tuple[int, float]]
Curves = dict[str, dict[int, Curve]]  # arm, seed


def main() -> None:
    lines = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    losses, scores = curves(lines, "loss"), curves(lines, "score")
    source_table(losses, scores)
    growth_table(losses, scores)
    plot_growth(losses, scores)
    grown_pruning_table(lines)
    importance = {line["arm"]: line["importance"] for line in lines if "importance" in line}
    pruning_table(lines)
    plot_importance(importance)


def curves(lines: list[dict[str, Any]], figure: str) -> Curves:
    out: Curves = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "seed" in line and figure in line:
            out[line["arm"]][line["seed"]].append((line["step"], line[figure]))
    return out


def mean(by_seed: dict[int, Curve]) -> Curve:
    steps = [step for step, _ in next(iter(by_seed.values()))]
    return list(zip(steps, np.mean([[y for _, y in points] for points in by_seed.values()], 0).tolist(), strict=True))


def source_table(losses: Curves, scores: Curves) -> None:
    for arm in ("source", "longer source"):
        if arm in losses:
            loss, score = mean(losses[arm])[-1], mean(scores[arm])[-1]
            say(arm, f"{len(losses[arm])} seeds", f"{loss[0]} steps", f"loss {loss[1]:.3f}", f"score {score[1]:.3f}")


def growth_table(losses: Curves, scores: Curves) -> None:
    """Loss and score where an arm starts and ends, and its steps to where training from scratch then is."""
    scratch, right = losses["scratch"], scores["scratch"]
    say("arm", "seeds", "loss at the start", "at the end", "score at the start", "at the end",
        *(f"steps to scratch's loss at {budget}" for budget in BUDGETS), f"to its score at {BUDGETS[-1]}")  # fmt: skip
    say(*["---"] * (7 + len(BUDGETS)))
    for arm in (arm for arm in ARMS if arm in losses):
        seeds = list(losses[arm])
        loss, score = mean(losses[arm]), mean(scores[arm])
        target, aim = mean({seed: scratch[seed] for seed in seeds}), mean({seed: right[seed] for seed in seeds})
        steps = [(reached(loss, dict(target)[budget], down=True), budget) for budget in BUDGETS]
        steps.append((reached(score, dict(aim)[BUDGETS[-1]], down=False), BUDGETS[-1]))
        each = ["not reached" if s is None else f"{s:.0f} ({1 - s / budget:.0%} fewer)" for s, budget in steps]
        say(arm, str(len(seeds)), *(f"{curve[at][1]:.3f}" for curve in (loss, score) for at in (0, -1)), *each)


def reached(points: Curve, target: float, down: bool) -> float | None:
    """The step at which a curve first is at the target or beyond, between its points by a straight line."""
    sign = 1 if down else -1
    before = None
    for step, value in points:
        if sign * value <= sign * target:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = step, value
    return None


def grown_pruning_table(lines: list[dict[str, Any]]) -> None:
    """The grown model with fewer blocks: loss and score before and after recovery."""
    say("layers", "which stay", "loss", "after recovery", "score", "after recovery")
    say(*["---"] * 6)
    for layers, stay, first, last in choices([line for line in lines if line["arm"].startswith("pruned, ")]):
        say(layers, stay, *(f"{line[figure]:.3f}" for figure in ("loss", "score") for line in (first, last)))


def pruning_table(lines: list[dict[str, Any]]) -> None:
    """The shipped checkpoint with fewer blocks: score before and after recovery."""
    whole = next(line for line in lines if line["arm"] == "whole")
    say("layers", "which stay", "score", "score after recovery")
    say(*["---"] * 4)
    say(str(whole["layers"]), "all", f"{whole['score']:.3f}", "")
    for layers, stay, first, last in choices([line for line in lines if line["arm"] == "prune"]):
        say(layers, stay, *(f"{line['score']:.3f}" for line in (first, last)))


def choices(lines: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Number of blocks, which stay, and the first and the last line of each choice; most blocks first."""
    runs: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        runs[line["layers"], line["choice"]].append(line)
    for (layers, choice), points in sorted(runs.items(), key=lambda item: -item[0][0]):
        yield str(layers), f"{CHOICES[choice]} ({', '.join(map(str, points[0]['kept']))})", points[0], points[-1]


def plot_growth(losses: Curves, scores: Curves) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, of in zip(axes, (losses, scores), strict=True):
        for arm, (colour, style) in ARMS.items():
            for points in of.get(arm, {}).values():
                axis.plot(*np.array(points).T, style, color=colour, lw=0.6, alpha=0.5)
            if arm in of:
                axis.plot(*np.array(mean(of[arm])).T, style, color=colour, lw=2, label=arm)
        axis.set(xlabel="steps of the deep model")
    axes[0].set(ylabel="held-out flow-matching loss", ylim=(None, 1.0))
    axes[1].set(ylabel="images that the evaluator accepts")
    axes[0].legend(frameon=False)
    figure.savefig(FOLDER / "growth.png", dpi=130)


def plot_importance(importance: dict[str, list[float]]) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
    names = {"importance": "shapes", "grown, importance": "width 64, grown from 4 to 8 layers, 800 steps"}
    for axis, (arm, name) in zip(axes, names.items(), strict=True):
        axis.bar(range(len(importance[arm])), importance[arm], color=GOLD)
        axis.set(xlabel="block", ylabel="importance (1 - cosine)", title=name)
    figure.savefig(FOLDER / "importance.png", dpi=130)


def say(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
