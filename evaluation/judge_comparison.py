"""Judges compared on the same labelled images: how often each is right, its cost, and how often two choose alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bestofn.evaluation.curve import LabelledCurve, auc, chosen
from bestofn.evaluation.files import write_report
from bestofn.judge.verdict import Verdict

Fields = Sequence[Sequence[tuple[float, bool]]]


@dataclass(frozen=True)
class JudgeRun:
    """What one judge gave on the labelled images.

    Attributes:
        name: as workers announce it.
        revision: as workers announce it.
        verdicts: one an image.
        correct: label of each image.
        fields: log-odds and label of each image, by prompt; prompts and images in one order for all judges.
        calibration: contents of the calibration file that was fitted on them; None: it could not be.
        tflops: mean TFLOPs of a verdict; None: computed on another machine.
        seconds: median seconds of a verdict, one image at a time.
        answers: whether its yes means something; a CLIP's does with a calibration of its own alone.
    """

    name: str
    revision: str
    verdicts: Sequence[Verdict]
    correct: Sequence[bool]
    fields: Fields
    calibration: Mapping[str, Any] | None
    tflops: float | None
    seconds: float
    answers: bool = True


def compare(runs: Sequence[JudgeRun]) -> dict[str, Any]:
    """The figures of every judge, and of every pair the share of prompts in which both choose the same image.

    An image without a usable verdict counts as wrong in the accuracy; in the AUC its pairs are ties (`curve.auc`).
    Prompts with one image say nothing of agreement and are left out of it. Numbers that do not exist are None.
    """
    curves = [LabelledCurve.of(run.fields) for run in runs]
    choices = [[_choice(field) for field in run.fields if len(field) > 1] for run in runs]
    return {
        "prompts": len(runs[0].fields),
        "images": len(runs[0].correct),
        "curve_prompts": curves[0].prompts,
        "oracle": {str(point.n): point.oracle for point in curves[0].points},
        "random": {str(point.n): point.random for point in curves[0].points},
        "judges": [_figures(run, curve) for run, curve in zip(runs, curves, strict=True)],
        "same_choice_by_chance": _finite(_mean([1 / len(field) for field in runs[0].fields if len(field) > 1])),
        "agreement": [
            {
                "judges": [runs[a].name, runs[b].name],
                "same_choice": _finite(_mean([x == y for x, y in zip(choices[a], choices[b], strict=True)])),
            }
            for a, b in combinations(range(len(runs)), 2)
        ],
    }


def _figures(run: JudgeRun, curve: LabelledCurve) -> dict[str, Any]:
    right = [one.usable and one.yes == correct for one, correct in zip(run.verdicts, run.correct, strict=True)]
    within = [auc(np.array([[right for _, right in field]]), np.array([[m for m, _ in field]])) for field in run.fields]
    return {
        "name": run.name,
        "revision": run.revision,
        "accuracy": _mean(right) if run.answers else None,
        "auc_within_prompt": _finite(_mean([value for value in within if not math.isnan(value)])),
        "without_verdict": sum(not one.usable for one in run.verdicts),
        "calibration": run.calibration,
        "best_of": {
            str(point.n): {"score": point.judge, "interval": point.judge_interval, "gain": point.gain_interval}
            for point in curve.points
        },
        "fooled": curve.loss if curve.fooled else None,
        "ask_at_most": curve.best if curve.fooled else None,
        "tflops": run.tflops,
        "seconds": run.seconds,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    sizes = list(figures["oracle"])
    blank = ["-"] * 4
    rows = [
        ["judge", "images judged right", "AUC within prompts", "calibration error, own", "calibration error, fitted"]
        + [f"best of {n}" for n in sizes]
        + ["fooled by search", "TFLOPs", "seconds"],
        ["---"] * (8 + len(sizes)),
        *([one["name"], *_cells(one, sizes)] for one in figures["judges"]),
        ["best there is", *blank, *(f"{figures['oracle'][n]:.3f}" for n in sizes), "-", "-", "-"],
        ["at random", *blank, *(f"{figures['random'][n]:.3f}" for n in sizes), "-", "-", "-"],
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{figures['prompts']} prompts, {figures['images']} images; best of N: {figures['curve_prompts']}"]
    lines[-1] += " prompts. A calibration is fitted on these images and checked on prompts left out of the fit."
    for one in figures["judges"]:
        if one["calibration"] is None:
            lines.append(
                f"{one['name']} cannot be calibrated here: its log-odds do not rise with being right, or it has none."
            )
        if one["accuracy"] is None:
            lines.append(f"{one['name']} has no calibration of its own, so its yes is not known.")
        if one["without_verdict"]:
            lines.append(f"{one['name']} gives no yes or no on {one['without_verdict']} images, which count as wrong.")
    lines += ["", "| two judges | prompts in which both choose the same image |", "|---|---|"]
    lines += [f"| {' and '.join(one['judges'])} | {_number(one['same_choice'])} |" for one in figures["agreement"]]
    lines.append(f"| by chance | {_number(figures['same_choice_by_chance'])} |")
    return "\n".join(lines) + "\n"


def _cells(one: Mapping[str, Any], sizes: Sequence[str]) -> list[str]:
    fitted = one["calibration"] or {}
    return [
        _number(one["accuracy"]),
        _number(one["auc_within_prompt"]),
        _number(fitted.get("calibration_error_before")),
        _number(fitted.get("calibration_error")),
        *(_number(one["best_of"][n]["score"]) for n in sizes),
        "no sign of it" if one["fooled"] is None else f"beyond N = {one['ask_at_most']}",
        "-" if one["tflops"] is None else f"{one['tflops']:.3g}",
        f"{one['seconds']:.3g}",
    ]


def write(folder: Path, figures: Mapping[str, Any]) -> None:
    """judges.json, judges.md and, where matplotlib is installed, judges.png in `folder`."""
    write_report(folder, "judges", figures, table(figures), lambda plots: plots.judges(folder / "judges.png", figures))


def _choice(field: Sequence[tuple[float, bool]]) -> int:
    """The image that the judge chooses: the first of greatest log-odds."""
    return int(chosen(np.array([[margin for margin, _ in field]]), len(field))[0, 0])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
