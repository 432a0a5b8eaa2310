"""Score against N, replayed from a pool: judge, oracle and random choice over the same candidates. Pure numpy.

Axes: P prompts, S samples of a prompt, B = S // n disjoint blocks of n samples.
"""

from collections.abc import Mapping, Sequence
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
    gain_interval: tuple[float, float]  # of judge - random, the same prompts resampled for both
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


def curve(correct: Floats, margin: Floats, tags: Sequence[str], seed: int = 0) -> list[Point]:
    """The scaling curve of a pool.

    A larger N uses fewer, larger blocks of the same samples, so every point sees every sample. The random judge's
    choice is drawn at random, not computed as a mean: it shows what no judge at all would gain.

    Args:
        correct: (P, S), 1 where the evaluator accepts the image.
        margin: (P, S), the judge's log-odds.
        tags: the category of each prompt.
        seed: of the random judge and of the bootstrap.
    """
    P, S = correct.shape
    if margin.shape != (P, S) or len(tags) != P:
        raise ValueError(f"{P} x {S} outcomes need as many margins and {P} tags, got {margin.shape} and {len(tags)}")
    noise = np.random.default_rng(seed).random((P, S))
    prompts = Prompts(tags, seed)
    points = []
    for n in sizes(S):
        by = {
            name: np.take_along_axis(correct, chosen(score, n), 1).mean(1)
            for name, score in (("judge", margin), ("oracle", correct), ("random", noise))
        }
        points.append(
            Point(
                n,
                prompts.mean(by["judge"]),
                prompts.mean(by["oracle"]),
                prompts.mean(by["random"]),
                prompts.mean(np.take_along_axis(margin, chosen(margin, n), 1).mean(1)),
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
