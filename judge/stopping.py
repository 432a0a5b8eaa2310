"""Early stopping: the leader is probably right, or no candidate satisfies the prompt. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bestofn.judge.calibration import Calibration, probability
from bestofn.judge.verdict import Verdict


class Reason(StrEnum):
    """Why a job ends before its last candidate."""

    CONFIDENT = "confident"
    PATIENCE = "patience"


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Rule that is checked after every heat, in index order, over all candidates so far.

    Attributes:
        confidence: probability of the leader at which the job stops.
        min_samples: minimum number of candidates before a job stops.
        patience: number of candidates without a yes after which the job stops.
        calibration: calibration of the judge; None: its own probability holds. Two judges' verdicts bring theirs.
    """

    confidence: float
    min_samples: int
    patience: int
    calibration: Calibration | None

    def reason(self, seen: int, leader: Verdict) -> Reason | None:
        """Reason to stop after `seen` candidates with this leader; None: go on.

        If the leader is not a yes, no candidate is: a yes ranks before a no, except for a tie of both logits. With two
        judges, the leader is then not accepted by both.
        """
        if seen >= self.min_samples and probability(leader, self.calibration) >= self.confidence:
            return Reason.CONFIDENT
        if seen >= self.patience and not leader.yes:
            return Reason.PATIENCE
        return None
