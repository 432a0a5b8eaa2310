"""How far a judge bears search: the score of its choice against N, from labelled images of several prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bestofn.evaluation.curve import Point, chosen, curve
from bestofn.evaluation.stats import Floats, Prompts


@dataclass(frozen=True)
class LabelledCurve:
    """The curve up to N = S over P prompts.

    Attributes:
        prompts: P, those with at least S images.
        points: N = 1, 2, 4, ..., S.
        best: the N at which the judge's choice is right most often.
        loss: 95 % interval of the share lost from there to S, paired by prompt. Above 0: search fools the judge.
    """

    prompts: int
    points: list[Point]
    best: int
    loss: tuple[float, float]

    @classmethod
    def of(cls, fields: Sequence[Sequence[tuple[float, bool]]]) -> "LabelledCurve":
        """
        Args:
            fields: log-odds and whether the image is right, of the candidates of each prompt. S is the greatest power
                of two that half of the prompts reach.
        """
        S = 2 ** (int(np.median([len(field) for field in fields])).bit_length() - 1)
        table = np.array([field[:S] for field in fields if len(field) >= S], np.float64)  # (P, S, 2)
        margin, correct = table[..., 0], table[..., 1]
        tags = ["all"] * len(table)
        points = curve(correct, margin, tags)
        best = max(points, key=lambda point: (point.judge, point.n)).n
        lost = _right(correct, margin, best) - _right(correct, margin, S)
        return cls(len(table), points, best, Prompts(tags).interval(lost))

    @property
    def fooled(self) -> bool:
        """Whether the judge chooses worse among all images than among fewer, beyond chance."""
        return self.loss[0] > 0

    def lines(self) -> Iterator[str]:
        """The curve as text, and what it says."""
        yield "    N  judge's choice  best there is  at random"
        for point in self.points:
            yield f"{point.n:5d}  {point.judge:14.3f}  {point.oracle:13.3f}  {point.random:9.3f}"
        last, low, high = self.points[-1].n, *self.loss
        if self.fooled:
            yield (
                f"more search fools this judge: from N = {self.best} to {last} it loses {low:.3f} to {high:.3f} "
                f"(95 %, {self.prompts} prompts). Ask for at most {self.best} candidates"
            )
        else:
            yield f"up to N = {last} nothing shows that more search fools this judge ({self.prompts} prompts)"


def _right(correct: Floats, margin: Floats, n: int) -> Floats:
    """Share of blocks of n whose choice is right.  # (P, S), (P, S) -> (P,)"""
    right: Floats = np.take_along_axis(correct, chosen(margin, n), 1).mean(1)
    return right
