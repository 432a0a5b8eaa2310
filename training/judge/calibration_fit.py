"""Fits the calibration of a judge on labelled images. Pure numpy.

Axes: L leaders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestofn.judge.calibration import Calibration

SIZES = (4, 8, 16, 32)
"""Numbers of candidates whose leaders enter the fit: choosing the best inflates margins."""
FOLDS = 5
_EDGES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
_PRIOR = np.array([1.0, 0.0, 4.0])  # slope and bias: the judge's own probability; log-odds of the ceiling: 0.98
_TOLERANCE, _STEPS = 1e-9, 200
_LEAST = 1e-12

Floats = NDArray[np.float64]
Field = Sequence[tuple[float, bool]]  # candidates of one prompt in their order: margin, whether it is right


@dataclass(frozen=True)
class Leaders:
    """Leaders, each the best of some candidates of one prompt.

    Attributes:
        margin: (L,), log-odds of yes.
        correct: (L,), 1 for a right image, 0 for a wrong one.
        weight: (L,), weight in the fit.
    """

    margin: Floats
    correct: Floats
    weight: Floats

    @classmethod
    def of(cls, fields: Sequence[Field]) -> Leaders:
        """The best of every block of 4, 8, 16 and 32 candidates of a field, or of all where they are fewer than 4.

        Each number of candidates has the same weight, whatever the number of its blocks.
        """
        found = []
        for field in fields:
            for n in [n for n in SIZES if n <= len(field)] or [len(field)]:
                starts = range(0, len(field) - n + 1, n)
                for start in starts:
                    margin, correct = max(field[start : start + n], key=_margin)
                    if math.isfinite(margin):
                        found.append((margin, float(correct), 1 / len(starts)))
        return cls(*np.array(found, dtype=np.float64).reshape(-1, 3).T)


@dataclass(frozen=True, slots=True)
class Bin:
    """Leaders with a predicted probability from `low` to `high`: mean prediction and share of right ones."""

    low: float
    high: float
    promised: float
    realised: float
    count: int
    weight: float


@dataclass(frozen=True, slots=True)
class Report:
    """A fit, and its reliability on prompts it was not fitted on.

    Attributes:
        calibration: fitted on all fields.
        table: reliability of probabilities that a fit on the other folds (five) predicts for a field.
        before: reliability of the judge's own probabilities.
        prompts: number of prompts with a judged image.
        images: number of judged images.
    """

    calibration: Calibration
    table: list[Bin]
    before: list[Bin]
    prompts: int
    images: int

    def to_json(self, judge: str, source: str) -> dict[str, Any]:
        """Contents of the calibration file.

        Args:
            judge: revision of the judge.
            source: description of the images.
        """
        rows = [
            {name: round(value, 4) for name, value in asdict(row).items() if name != "weight"} for row in self.table
        ]
        return {
            "judge": judge,
            "temperature": self.calibration.temperature,
            "bias": self.calibration.bias,
            "ceiling": self.calibration.ceiling,
            "fitted_on": source,
            "prompts": self.prompts,
            "images": self.images,
            "calibration_error": round(calibration_error(self.table), 4),
            "calibration_error_before": round(calibration_error(self.before), 4),
            "reliability": rows,
        }


def calibrate(fields: Sequence[Field]) -> Report:
    """Fit on the leaders of all fields and check the fit by folds over them.

    Raises:
        ValueError: as `fit`.
    """
    leaders = Leaders.of(fields)
    calibration = fit(leaders)
    checked, promised = [], []
    for fold in range(min(FOLDS, len(fields))):
        unseen, others = Leaders.of(fields[fold::FOLDS]), [f for i, f in enumerate(fields) if i % FOLDS != fold]
        fitted = fit(Leaders.of(others)) if others else calibration
        checked.append(unseen)
        promised.append(fitted.ceiling * _sigmoid(unseen.margin / fitted.temperature + fitted.bias))
    unseen = Leaders(*(np.concatenate([getattr(one, name) for one in checked]) for name in Leaders.__annotations__))
    judged = [sum(math.isfinite(margin) for margin, _ in field) for field in fields]
    return Report(
        calibration,
        reliability(np.concatenate(promised), unseen),
        reliability(_sigmoid(leaders.margin), leaders),
        sum(map(bool, judged)),
        sum(judged),
    )


def fit(leaders: Leaders) -> Calibration:
    """Temperature, bias and ceiling of least log-loss, by Fisher scoring.

    A pull towards `_PRIOR` with one prompt's weight keeps the fit finite where right and wrong are separable.

    Raises:
        ValueError: no leader has a finite margin, or margins do not rise with being right.
    """
    if not leaders.margin.size:
        raise ValueError("there are no images with a usable verdict: every margin is infinite or not a number")
    at = _PRIOR
    for _ in range(_STEPS):
        p, slopes = _promised(at, leaders.margin), _slopes(at, leaders.margin)  # (L,), (3, L)
        weight = leaders.weight / (p * (1 - p))
        gradient = slopes @ (weight * (p - leaders.correct)) + at - _PRIOR
        step = np.linalg.solve((slopes * weight) @ slopes.T + np.eye(3), gradient)
        share = 1.0
        while share > _TOLERANCE and _loss(at - share * step, leaders) > _loss(at, leaders):
            share /= 2
        at = at - share * step
        if share * np.abs(step).max() < _TOLERANCE:
            break
    slope, bias, ceiling = map(float, (at[0], at[1], _sigmoid(at[2])))
    if slope <= 0:
        raise ValueError("the judge's margins do not rise with being right on these images: it cannot be calibrated")
    return Calibration(1 / slope, bias, ceiling)


def reliability(promised: Floats, leaders: Leaders) -> list[Bin]:
    """Predicted probabilities, (L,), against the share of right leaders, in bins of the prediction; none is empty."""
    place = np.clip(np.searchsorted(_EDGES, promised, side="right") - 1, 0, len(_EDGES) - 2)
    table = []
    for i in np.unique(place):
        weight = leaders.weight[place == i]
        p, correct = (float(np.average(of[place == i], weights=weight)) for of in (promised, leaders.correct))
        table.append(Bin(float(_EDGES[i]), float(_EDGES[i + 1]), p, correct, len(weight), float(weight.sum())))
    return table


def calibration_error(table: Sequence[Bin]) -> float:
    """Expected calibration error: absolute error of the predictions, averaged over the bins by weight."""
    return sum(row.weight * abs(row.promised - row.realised) for row in table) / sum(row.weight for row in table)


def _margin(one: tuple[float, bool]) -> float:
    return -math.inf if math.isnan(one[0]) else one[0]


def _promised(at: Floats, margin: Floats) -> Floats:
    """Probabilities, (L,), at slope, bias and the ceiling's log-odds."""
    return np.clip(_sigmoid(at[2]) * _sigmoid(at[0] * margin + at[1]), _LEAST, 1 - _LEAST)


def _slopes(at: Floats, margin: Floats) -> Floats:
    """Derivatives of the probabilities by slope, bias and the ceiling's log-odds, (3, L)."""
    inner, ceiling = _sigmoid(at[0] * margin + at[1]), _sigmoid(at[2])
    bend = ceiling * inner * (1 - inner)
    return np.stack([bend * margin, bend, inner * ceiling * (1 - ceiling)])


def _loss(at: Floats, leaders: Leaders) -> float:
    p = _promised(at, leaders.margin)
    likelihood = np.where(leaders.correct > 0, np.log(p), np.log1p(-p))
    return float(0.5 * ((at - _PRIOR) ** 2).sum() - leaders.weight @ likelihood)


def _sigmoid(x: Floats) -> Floats:
    value: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return value
