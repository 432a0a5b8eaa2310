"""Score against N, replayed from a pool: judge, oracle and random choice over the same candidates. Pure numpy.

Axes: P prompts, S samples of a prompt, B = S // n disjoint blocks of n samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # per cent


@dataclass(frozen=True)
class Point:
    """Shares of correct winners at one N, averaged over blocks, prompts of a category, and categories."""

    n: int
    judge: float
    oracle: float
    random: float
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
        correct: (P, S), 1 where the evaluator accepts the picture.
        margin: (P, S), the judge's log-odds.
        tags: the category of each prompt.
        seed: of the random judge and of the bootstrap.
    """
    P, S = correct.shape
    if margin.shape != (P, S) or len(tags) != P:
        raise ValueError(f"{P} x {S} outcomes need as many margins and {P} tags, got {margin.shape} and {len(tags)}")
    rng = np.random.default_rng(seed)
    noise = rng.random((P, S))
    names = list(dict.fromkeys(tags))
    members = [np.flatnonzero(np.array(tags) == name) for name in names]
    picks = [rng.choice(group, (RESAMPLES, len(group))) for group in members]

    def mean(per_prompt: Floats) -> float:
        return float(np.mean([per_prompt[group].mean() for group in members]))

    def interval(per_prompt: Floats) -> tuple[float, float]:
        spread = np.mean([per_prompt[pick].mean(1) for pick in picks], axis=0)
        low, high = np.percentile(spread, INTERVAL)
        return float(low), float(high)

    points = []
    for n in sizes(S):
        by = {
            name: np.take_along_axis(correct, chosen(score, n), 1).mean(1)
            for name, score in (("judge", margin), ("oracle", correct), ("random", noise))
        }
        points.append(
            Point(
                n,
                mean(by["judge"]),
                mean(by["oracle"]),
                mean(by["random"]),
                interval(by["judge"]),
                interval(by["judge"] - by["random"]),
                {name: float(by["judge"][group].mean()) for name, group in zip(names, members, strict=True)},
                {name: float(by["oracle"][group].mean()) for name, group in zip(names, members, strict=True)},
            )
        )
    return points


def share_of_the_way(points: Sequence[Point]) -> float:
    """How far the judge goes from one sample to the oracle's best at the largest N; NaN if the oracle gains nothing."""
    first, last = points[0], points[-1]
    room = last.oracle - first.oracle
    return (last.judge - first.judge) / room if room > 0 else float("nan")


def auc(correct: Floats, margin: Floats) -> float:
    """Probability that a right candidate outranks a wrong one of its prompt, averaged over prompts that have both."""
    values = []
    for right, scores in zip(correct > 0, np.nan_to_num(margin, nan=-np.inf), strict=True):
        if right.any() and not right.all():
            difference = scores[right][:, None] - scores[~right][None, :]
            values.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return float(np.mean(values)) if values else float("nan")
