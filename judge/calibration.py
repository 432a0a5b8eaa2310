"""Calibrated probabilities: how sure one may be that the best of several pictures is right, without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from bestofn.judge.verdict import Verdict

FILE = "calibration.json"  # beside a judge's weights; no part of its revision


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = sigmoid(margin / temperature + bias): Platt scaling of the judge's log-odds.

    Raises:
        ValueError: the temperature is not positive, or a number is not finite.
    """

    temperature: float
    bias: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.bias)):
            raise ValueError(
                f"a calibration needs a positive temperature and a finite bias, got {self.temperature} and {self.bias}"
            )

    def p(self, margin: float) -> float:
        """Probability that a leader of this margin is right."""
        return 0.5 * (1.0 + math.tanh(0.5 * (margin / self.temperature + self.bias)))


def probability(verdict: Verdict, calibration: Calibration | None) -> float:
    """Probability that a leader with this verdict is right; without a calibration the judge's own `p_yes`.

    A verdict that is neither yes nor no, or broken, promises nothing: 0.
    """
    if verdict.broken or verdict.answer == "other":
        return 0.0
    return verdict.p_yes if calibration is None else calibration.p(verdict.margin)


def read(path: Path) -> Calibration:
    """A calibration from its file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(float(fields["temperature"]), float(fields["bias"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no calibration ({error}): write it anew with `bestofn calibrate`") from error
