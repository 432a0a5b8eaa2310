"""Score against N, replayed from a pool: judge, oracle and random choice over the same candidates. Pure numpy.

Axes: P prompts, S samples of a prompt, B = S // n disjoint blocks of n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestofn.evaluation.stats import Floats, Prompts


@dataclass(frozen=True)
class Point:
    """Shares of correct winners at one N, averaged over blocks, prompts of a category, and categories."""

    n: int
    judge: float
    oracle: float
    random: float
    margin: float  # the judge's log-odds of what it chose
    judge_interval: tuple[float, float]  # 95 %, bootstrap over prompts
    gain_interval: tuple[float, float]  # interval of judge - random, the same prompts resampled for both
    judge_by_category: Mapping[str, float]
    oracle_by_category: Mapping[str, float]


def sizes(S: int) -> list[int]:
    """1, 2, 4, ... up to S."""
    return [2**i for i in range(S.bit_length())]


def chosen(score: Floats, n: int) -> NDArray[np.intp]:
    """The best of every block of n, ties to the earlier: column indices.  # (P, S) -> (P, B)"""
    P, S = score.shape
    B = S // n
    blocks = np.where(np.isnan(score), -np.inf, score)[:, : B * n].reshape(P, B, n)
    picked: NDArray[np.intp] = blocks.argmax(2) + np.arange(B) * n
    return picked


def of_chosen(values: Floats, score: Floats, n: int) -> Floats:
    """Values of the best of every block of n, averaged over blocks.  # (P, S), (P, S) -> (P,)"""
    mean: Floats = np.take_along_axis(values, chosen(score, n), 1).mean(1)
    return mean


def curve(correct: Floats, margin: Floats, tags: Sequence[str]) -> list[Point]:
    """The scaling curve of a pool.

    A larger N uses fewer, larger blocks of the same samples, so every point sees every sample. The random judge's
    choice is drawn at random, not computed as a mean: it shows what no judge at all would gain.

    Args:
        correct: (P, S), 1 where the evaluator accepts the image.
        margin: (P, S), the judge's log-odds.
        tags: the category of each prompt.
    """
    P, S = correct.shape
    if margin.shape != (P, S) or len(tags) != P:
        raise ValueError(f"{P} x {S} outcomes need as many margins and {P} tags, got {margin.shape} and {len(tags)}")
    noise = np.random.default_rng(0).random((P, S))
    prompts = Prompts(tags)
    points = []
    for n in sizes(S):
        scores = {"judge": margin, "oracle": correct, "random": noise}
        by = {name: of_chosen(correct, score, n) for name, score in scores.items()}
        points.append(
            Point(
                n,
                prompts.mean(by["judge"]),
                prompts.mean(by["oracle"]),
                prompts.mean(by["random"]),
                prompts.mean(of_chosen(margin, margin, n)),
                prompts.interval(by["judge"]),
                prompts.interval(by["judge"] - by["random"]),
                prompts.by_category(by["judge"]),
                prompts.by_category(by["oracle"]),
            )
        )
    return points


def share_of_the_way(points: Sequence[Point]) -> float:
    """How far the judge goes from one sample to the oracle's best at the largest N; NaN if the oracle gains nothing."""
    first, last = points[0], points[-1]
    room = last.oracle - first.oracle
    return (last.judge - first.judge) / room if room > 0 else float("nan")


def auc(correct: Floats, margin: Floats) -> float:
    """Probability that a right candidate outranks a wrong one of its prompt, averaged over prompts that have both.

    Equal margins are ties, which count one half. So is a pair of which one candidate has no verdict (NaN).
    """
    values = []
    for right, scores in zip(correct > 0, margin, strict=True):
        if right.any() and not right.all():
            difference = np.nan_to_num(scores[right][:, None] - scores[~right][None, :], nan=0.0)
            values.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return float(np.mean(values)) if values else float("nan")


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
        lost = of_chosen(correct, margin, best) - of_chosen(correct, margin, S)
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
