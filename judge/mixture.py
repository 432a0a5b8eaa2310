"""Several judges as one: the weighted mean of their calibrated log-odds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestofn.judge.calibration import Calibration
from bestofn.judge.interface import PointwiseJudge, reward_verdict
from bestofn.judge.verdict import BROKEN, Verdict

if TYPE_CHECKING:
    import torch

    from bestofn.judge.preprocess import ImageLike


@dataclass(frozen=True, slots=True)
class Member:
    """A judge of a mixture, its weight in the mean, and its calibration; None: its own log-odds count."""

    judge: PointwiseJudge
    weight: float
    calibration: Calibration | None


def mixed(verdicts: Sequence[Verdict], weights: Sequence[float], calibrations: Sequence[Calibration | None]) -> Verdict:
    """The verdict whose margin is the weighted mean of calibrated log-odds; none if one of the judges gave none."""
    if any(verdict.broken for verdict in verdicts):
        return BROKEN
    pairs = zip(verdicts, calibrations, strict=True)
    odds = [verdict.margin if fitted is None else fitted.log_odds(verdict.margin) for verdict, fitted in pairs]
    return reward_verdict(sum(w * x for w, x in zip(weights, odds, strict=True)) / sum(weights))


class MixtureJudge(PointwiseJudge):
    """Judges who each see every image; the cost is the sum of theirs."""

    def __init__(self, members: Sequence[Member]) -> None:
        """
        Args:
            members: at least one.
        """
        self._members = tuple(members)
        self._judges = [member.judge for member in members]
        limits = [judge.max_batch for judge in self._judges if judge.max_batch is not None]
        self.max_batch = min(limits, default=None)

    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> list[tuple[Any, ...]]:
        """As `PointwiseJudge.ask`: the rows of all judges about each image."""
        options = {"one_tile": one_tile, "non_blocking": non_blocking}
        return list(zip(*(judge.ask(images, prompts, **options) for judge in self._judges), strict=True))

    def verdict(self, row: tuple[Any, ...]) -> Verdict:
        """The mixed verdict (`mixed`)."""
        verdicts = [judge.verdict(part) for judge, part in zip(self._judges, row, strict=True)]
        return mixed(verdicts, [one.weight for one in self._members], [one.calibration for one in self._members])

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """As `PointwiseJudge.flops`."""
        return sum(judge.flops(width, height, prompt, one_tile=one_tile) for judge in self._judges)

    def check(self, prompt: str, width: int, height: int) -> None:
        """As `PointwiseJudge.check`."""
        for judge in self._judges:
            judge.check(prompt, width, height)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that one of the judges has never learned."""
        return list(dict.fromkeys(word for judge in self._judges for word in judge.unknown_words(prompt)))
