"""Replaying a strategy from the pool: the service's own policies over verdicts that are known; nothing is drawn.

P prompts, S samples of each, N candidates of a job, B = S // N disjoint blocks, each of them a job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestofn.judge.verdict import Verdict
from bestofn.service.evaluation.pool import Pool, Samples
from bestofn.service.evaluation.stats import Floats
from bestofn.service.evaluation.strategies import Strategy
from bestofn.service.jobs import Candidate, JobSpec, Revision
from bestofn.service.result import finalists, ranked

Ints = NDArray[np.int_]
PIN = Revision(name="", revision="")


@dataclass(frozen=True)
class Replayed:
    """What became of every job, (P, B) each.

    Attributes:
        strategy: that was replayed.
        numbers: (P,), of the prompts.
        correct: 1 where the evaluator accepts the winner.
        drafted, solved: candidates that were drafted, and solved in full.
        confidence: promised for the winner where the job stopped; NaN elsewhere.
        kept: 1 where the winner is the one that the best of all N would be, were all solved in full.
    """

    strategy: Strategy
    numbers: list[int]
    correct: Floats
    drafted: Ints
    solved: Ints
    confidence: Floats
    kept: Floats


def replay(strategy: Strategy, pool: Pool, steps: int, prompts: Sequence[int]) -> Replayed | None:
    """All jobs that the pool can tell of.

    Args:
        strategy: to replay.
        pool: of candidates.
        steps: of the checkpoint, where the strategy names none.
        prompts: numbers of the prompts; the pool has as many samples of each as are used.

    Returns:
        None while the pool has too few samples of these prompts.
    """
    ways = strategy.ways(steps)
    S = min(pool.depth(way, prompts) for way in ways)
    B = S // strategy.num_samples
    if not B or not prompts:
        return None
    solved, *coarse = (pool.samples(way, S).of(prompts, S) for way in ways)
    drafts = coarse[0] if coarse else None
    spec = job(strategy, steps)
    played = [
        [_play(spec, solved, drafts, row, block * spec.num_samples) for block in range(B)]
        for row in range(len(prompts))
    ]
    return Replayed(strategy, list(prompts), *(np.array([[one[k] for one in row] for row in played]) for k in range(5)))


def job(strategy: Strategy, steps: int) -> JobSpec:
    """The job that a request with these options becomes."""
    return JobSpec(
        id="replay", prompt="", num_samples=strategy.num_samples, seed=0, width=32, height=32,
        num_inference_steps=strategy.steps or steps, guidance_scale=1.0, draft=strategy.draft or strategy.preview,
        model=PIN, judge=PIN,
    )  # fmt: skip


def _play(
    spec: JobSpec, full: Samples, drafts: Samples | None, row: int, first: int
) -> tuple[float, int, int, float, float]:
    """One job over the samples from `first` on: correct, drafted, solved, confidence, kept."""
    seen: list[Candidate] = []
    drafted = 0
    for heat in spec.heats():
        chosen = list(heat.candidates)
        if drafts is not None:
            chosen = finalists(spec, {i: verdict(drafts, row, first + i) for i in chosen})
            drafted += heat.count
        seen += [Candidate(i, i, verdict(full, row, first + i)) for i in chosen]
    winner = ranked(spec, seen)[0].index
    block = full.margin[row, first : first + spec.num_samples]
    kept = float(winner == int(block.argmax()))
    return float(full.correct[row, first + winner]), drafted, len(seen), float("nan"), kept


def verdict(samples: Samples, row: int, column: int) -> Verdict:
    """A verdict as the judge gave it."""
    yes, no = float(samples.yes[row, column]), float(samples.no[row, column])
    return Verdict("yes" if yes > no else "no", yes, no)
