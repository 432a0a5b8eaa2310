"""How well a cheap look at a candidate foretells its full solution, within prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bestofn.evaluation.pool import Pool, SamplingConfig
from bestofn.evaluation.stats import Floats

HEAT = 16


@dataclass(frozen=True)
class Ranking:
    """Of drafts or previews against full solutions, over prompts x heats of 16.

    Attributes:
        jobs: heats.
        spearman: rank correlation of the judge's log-odds within a heat, mean over heats.
        retention: share of heats whose best full solution is among the best 1, 2, 4 and 8 drafts.
    """

    jobs: int
    spearman: float
    retention: dict[int, float]


def ranking(pool: Pool, full: SamplingConfig, coarse: SamplingConfig, prompts: Sequence[int]) -> Ranking | None:
    """None while the pool has no complete heat of either for one of these prompts."""
    S = min(pool.depth(full, prompts), pool.depth(coarse, prompts)) // HEAT * HEAT
    if not S or not prompts:
        return None
    return foretold(*(pool.samples(config, S).of(prompts, S).margin.reshape(-1, HEAT) for config in (full, coarse)))


def foretold(final: Floats, draft: Floats) -> Ranking:
    """The same of the judge's log-odds on J heats of 16.  # (J, 16), (J, 16)"""
    places = _ranks(-draft)  # 0 is the best draft
    best = places[np.arange(len(final)), final.argmax(1)]
    return Ranking(
        len(final),
        float(_correlation(_ranks(final), _ranks(draft)).mean()),
        {k: float((best < k).mean()) for k in (1, 2, 4, 8)},
    )


def _ranks(values: Floats) -> Floats:  # (J, 16)
    return np.asarray(values.argsort(1, kind="stable").argsort(1, kind="stable"), np.float64)


def _correlation(a: Floats, b: Floats) -> Floats:  # (J, 16), (J, 16) -> (J,)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return np.asarray((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))
