"""Tables and plots of docs/growth.md from runs.jsonl: `python docs/growth/draw.py`."""

import json
import sys
from collections import defaultdict
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
    "cyclic": ("#3a6ea5", "--"),
    "block": ("#7aa874", "--"),
}
Curves = dict[str, dict[int, list[tuple[int, float]]]]


def main() -> None:
    lines = [json.loads(line) for line in (FOLDER / "runs.jsonl").read_text().splitlines()]
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "loss" in line:
            curves[line["arm"]][line["seed"]].append((line["step"], line["loss"]))
    growth_table(curves)
    plot_growth(curves)
    importance = [line["importance"] for line in lines if line["arm"] == "importance"]
    if importance:
        pruning_table([line for line in lines if line["arm"] in ("prune", "whole")])
        plot_importance(importance[0])


def growth_table(curves: Curves) -> None:
    """Loss where an arm starts and ends, and the steps until it is where training from scratch ends."""
    say("arm", "seed", "loss at the start", "at the end", "steps to the end of scratch", "fewer steps")
    say(*["---"] * 6)
    for arm in (arm for arm in ARMS if arm in curves):
        for seed, points in sorted(curves[arm].items()):
            scratch = curves["scratch"][seed]
            steps = reached(points, scratch[-1][1])
            fewer = "" if steps is None else f"{1 - steps / scratch[-1][0]:.0%}"
            reach = "not reached" if steps is None else f"{steps:.0f} of {scratch[-1][0]}"
            say(arm, str(seed), f"{points[0][1]:.3f}", f"{points[-1][1]:.3f}", reach, fewer)


def reached(points: list[tuple[int, float]], target: float) -> float | None:
    """The step at which a curve first is at or under the target, between its points by a straight line."""
    before = None
    for step, loss in points:
        if loss <= target:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (step - before[0])
        before = step, loss
    return None


def pruning_table(lines: list[dict[str, Any]]) -> None:
    whole = next(line for line in lines if line["arm"] == "whole")
    say("layers", "which stay", "score", "score after recovery")
    say(*["---"] * 4)
    say(str(whole["layers"]), "all", f"{whole['score']:.3f}", "")
    runs: dict[tuple[int, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        if line["arm"] == "prune":
            runs[line["layers"], line["choice"]][line["step"]] = line
    for (layers, choice), steps in sorted(runs.items(), key=lambda item: -item[0][0]):
        names = {"importance": "most important", "last": "first", "random": "random"}
        kept = ", ".join(map(str, steps[0]["kept"]))
        after = max(steps)
        scores = [f"{steps[0]['score']:.3f}", f"{steps[after]['score']:.3f}" if after else ""]
        say(str(layers), f"{names[choice]} ({kept})", *scores)


def plot_growth(curves: Curves) -> None:
    figure, axis = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    for arm, (colour, style) in ARMS.items():
        for i, points in enumerate(curves.get(arm, {}).values()):
            steps, losses = np.array(points).T
            axis.plot(steps, losses, style, color=colour, lw=1.3, label=arm if i == 0 else None)
    axis.set(xlabel="steps of the deep model", ylabel="held-out flow-matching loss", ylim=(None, 1.3))
    axis.legend(frameon=False)
    figure.savefig(FOLDER / "growth.png", dpi=130)


def plot_importance(importance: list[float]) -> None:
    figure, axis = pyplot.subplots(figsize=(6.5, 2.8), layout="constrained")
    axis.bar(range(len(importance)), importance, color=GOLD)
    axis.set(xlabel="block", ylabel="importance (1 - cosine)")
    figure.savefig(FOLDER / "importance.png", dpi=130)


def say(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
