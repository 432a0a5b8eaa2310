"""When a job has seen enough: its leader is probably right, or the prompt is hopeless. Without torch."""

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
    """Asked after every heat, in the order of heats, of all candidates so far.

    Attributes:
        confidence: the leader's probability of being right at which it is enough.
        min_samples: candidates before the leader is believed.
        patience: candidates without a yes after which the prompt is given up.
        calibration: of the judge; without one, its own probability is taken. Two judges' verdicts bring theirs.
    """

    confidence: float
    min_samples: int
    patience: int
    calibration: Calibration | None

    def reason(self, seen: int, leader: Verdict) -> Reason | None:
        """Why to end after `seen` candidates with this leader, or None to go on.

        A leader that is no yes means that there was none: under both rules of one judge a yes ranks before a no (but
        for a tie of both logits). Of two judges, it is the leader that they do not both accept.
        """
        if seen >= self.min_samples and probability(leader, self.calibration) >= self.confidence:
            return Reason.CONFIDENT
        if seen >= self.patience and not leader.yes:
            return Reason.PATIENCE
        return None
