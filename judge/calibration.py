"""Calibrated probabilities: how sure one may be that the best of several images is right, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bestofn.judge.verdict import Verdict

FILE = "calibration.json"  # in a judge's folder; not part of its revision


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = ceiling * sigmoid(margin / temperature + bias): Platt scaling of the judge's log-odds, below a ceiling.

    Attributes:
        temperature, bias: divisor and offset of the log-odds.
        ceiling: what no margin gets beyond, since a judge has blind spots, and is as sure there as elsewhere.

    Raises:
        ValueError: a number is not finite or out of its range.
    """

    temperature: float
    bias: float
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.bias)):
            raise ValueError(
                f"a calibration needs a positive temperature and a finite bias, got {self.temperature} and {self.bias}"
            )
        if not 0 < self.ceiling <= 1:
            raise ValueError(f"the ceiling of a calibration lies between 0 and 1, got {self.ceiling}")

    def p(self, margin: float) -> float:
        """Probability that a leader of this margin is right."""
        return self.ceiling * 0.5 * (1.0 + math.tanh(0.5 * (margin / self.temperature + self.bias)))

    @property
    def even_margin(self) -> float:
        """Margin at which `p` is one half, beyond which an answer is a yes; infinite below a ceiling of one half."""
        return math.inf if self.ceiling <= 0.5 else -self.temperature * (math.log(2 * self.ceiling - 1) + self.bias)

    def log_odds(self, margin: float) -> float:
        """Log-odds of `p`, exact where that rounds to 0 or 1."""
        x = margin / self.temperature + self.bias
        if self.ceiling == 1:
            return x
        # ln(p / (1 - p)) of p = c / (1 + e^-x), with the factor e^x taken out where e^-x would overflow.
        return math.log(self.ceiling) - (
            math.log(1 - self.ceiling + math.exp(-x)) if x > 0 else math.log1p((1 - self.ceiling) * math.exp(x)) - x
        )


def probability(verdict: Verdict, calibration: Calibration | None) -> float:
    """Probability that a leader with this verdict is right; without a calibration the judge's own `p_yes`.

    Of two judges' verdict that is the smaller of both probabilities, in which their calibrations are already. A verdict
    that is neither yes nor no, or broken, promises nothing: 0.
    """
    if not verdict.usable:
        return 0.0
    return verdict.p_yes if calibration is None or verdict.second else calibration.p(verdict.margin)


def bounded(first: Verdict, second: Verdict, calibrations: Sequence[Calibration | None] = (None, None)) -> Verdict:
    """Two judges' verdicts on one image as one, its bound the smaller of their calibrated log-odds.

    What both accept is harder to fake than what one does: their blind spots differ.

    Args:
        first, second: verdicts of one judge each.
        calibrations: both judges' calibrations; None: raw log-odds are taken.
    """
    pairs = zip((first.margin, second.margin), calibrations, strict=True)
    odds = [margin if calibration is None else calibration.log_odds(margin) for margin, calibration in pairs]
    broken = first.broken or second.broken  # min would pass over a NaN
    return replace(first, second=second, bound=math.nan if broken else min(odds))


def read(path: Path, judge: str | None = None) -> Calibration:
    """The calibration in a file; of a judge of this revision, if one is given.

    Raises:
        ValueError: it cannot be read, holds something else, or was fitted for another revision.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fitted = str(fields["judge"])
        calibration = Calibration(*(float(fields[name]) for name in ("temperature", "bias", "ceiling")))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): write it with `bestofn calibrate`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no calibration ({error}): write it with `bestofn calibrate`") from error
    if judge not in (None, fitted):
        raise ValueError(
            f"{path} was fitted for the judge's revision {fitted}, and this is {judge}: fit it again with "
            "`bestofn calibrate`, or remove it"
        )
    return calibration
