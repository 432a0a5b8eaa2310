"""What an evaluation says: a table, JSON and a plot of the scaling curve."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bestofn.service.evaluation.curve import Point, auc, curve, share_of_the_way
from bestofn.service.evaluation.pool import Row, Source


def summary(rows: Mapping[int, Row], source: Source, machine: str) -> dict[str, Any]:
    """Every figure of the report."""
    pool = list(rows.values())
    correct = np.array([row.correct for row in pool], np.float64)  # (P, S)
    margin = np.array([row.yes_logit for row in pool]) - np.array([row.no_logit for row in pool])  # (P, S)
    held = np.array([row.held_out for row in pool])
    tags = [row.tag for row in pool]
    points = curve(correct, margin, tags)
    accuracy = float(np.mean((margin > 0) == (correct > 0)))
    out = {
        "model": source.model_revision,
        "judge": source.judge_revision,
        "machine": machine,
        "prompts": len(pool),
        "samples": source.samples,
        "points": [asdict(point) for point in points],
        "share_of_the_way": share_of_the_way(points),
        "judge_accuracy": accuracy,
        "judge_auc_within_prompt": auc(correct, margin),
    }
    if held.any():
        never = curve(correct[held], margin[held], [tag for tag, is_held in zip(tags, held, strict=True) if is_held])
        out["never_trained"] = {"prompts": int(held.sum()), "points": [asdict(point) for point in never]}
    return out


def table(figures: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    points = figures["points"]
    head = "| N | " + " | ".join(str(point["n"]) for point in points) + " |"
    rule = "|---|" + "---|" * len(points)

    def line(name: str, values: Sequence[float]) -> str:
        return f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"

    lines = [head, rule]
    lines += [
        line(tag.replace("_", " "), [point["judge_by_category"][tag] for point in points])
        for tag in points[0]["judge_by_category"]
    ]
    lines.append(line("**mean, judge**", [point["judge"] for point in points]))
    intervals = [f"{low:.3f} to {high:.3f}" for low, high in (point["judge_interval"] for point in points)]
    lines.append("| 95 % interval | " + " | ".join(intervals) + " |")
    lines.append(line("mean, oracle", [point["oracle"] for point in points]))
    lines.append(line("mean, random judge", [point["random"] for point in points]))
    if "never_trained" in figures:
        never = figures["never_trained"]["points"]
        lines.append(line("never-trained combinations, judge", [point["judge"] for point in never]))
        lines.append(line("never-trained combinations, oracle", [point["oracle"] for point in never]))
    last = points[-1]
    low, high = last["gain_interval"]
    lines += [
        "",
        f"{figures['prompts']} prompts x {figures['samples']} samples; model {figures['model']}, judge "
        f"{figures['judge']}. Best of {last['n']} by the judge: {last['judge'] - points[0]['judge']:+.3f} over one "
        f"sample ({low:+.3f} to {high:+.3f} over a random judge), {100 * figures['share_of_the_way']:.0f} % of the way "
        f"to the oracle's. The judge is right on {100 * figures['judge_accuracy']:.1f} % of pictures; within a prompt "
        f"it puts a right one above a wrong one {100 * figures['judge_auc_within_prompt']:.1f} % of the time.",
        "",
        f"Machine: {figures['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, figures: Mapping[str, Any]) -> None:
    """scaling.json, scaling.md and, where matplotlib is installed, scaling.png in `folder`."""
    (folder / "scaling.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "scaling.md").write_text(table(figures), encoding="utf-8")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    _plot(folder / "scaling.png", [Point(**point) for point in figures["points"]])


def _plot(path: Path, points: Sequence[Point]) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    n = [point.n for point in points]
    left.plot(n, [point.oracle for point in points], "--", color="#999999", label="oracle (the evaluator chooses)")
    left.plot(n, [point.judge for point in points], "o-", color="#d49a1e", label="judge")
    low, high = zip(*(point.judge_interval for point in points), strict=True)
    left.fill_between(n, low, high, color="#d49a1e", alpha=0.15, linewidth=0)
    left.plot(n, [point.random for point in points], ":", color="#666666", label="random judge")
    for tag in points[0].judge_by_category:
        right.plot(n, [point.judge_by_category[tag] for point in points], "o-", ms=3, label=tag.replace("_", " "))
    for axis, title in ((left, "mean of six categories"), (right, "judge, by category")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(n, [str(value) for value in n])
        axis.set_xlabel("N, candidates drawn")
        axis.set_ylabel("share of correct winners")
        axis.set_ylim(0, 1.02)
        axis.set_title(title)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
