"""Replaying a strategy from the pool: the service's own policies over verdicts that are known; nothing is drawn.

P prompts, S samples of each, N candidates of a job, B = S // N disjoint blocks, each of them a job.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestofn.evaluation.pool import Pool, Samples
from bestofn.evaluation.stats import Floats
from bestofn.evaluation.strategies import Strategy
from bestofn.judge.calibration import Calibration, probability
from bestofn.judge.stopping import Reason
from bestofn.service.core.early_stopping import Prefix, fold
from bestofn.service.core.jobs import Candidate, JobSpec, Revision
from bestofn.service.core.results import promoted

Ints = NDArray[np.int_]


@dataclass(frozen=True)
class Replayed:
    """What became of every job, (P, B) each if nothing else is said.

    Attributes:
        strategy: that was replayed.
        steps: denoising steps of a full solution.
        numbers: (P,), of the prompts.
        samples: S.
        winners: (P, B, top_k), the best samples of the pool's, best first.
        correct: 1 where the evaluator accepts the winner.
        margin: the judge's log-odds of the winner.
        drafted, solved: candidates that were drafted, and solved in full.
        confidence: promised for the winner where the job stopped; NaN elsewhere.
        kept: 1 where the winner is the one that the best of all N would be, were all solved in full.
    """

    strategy: Strategy
    steps: int
    numbers: list[int]
    samples: int
    winners: Ints
    correct: Floats
    margin: Floats
    drafted: Ints
    solved: Ints
    confidence: Floats
    kept: Floats

    @property
    def verdicts(self) -> Ints:
        """Images that are decoded and judged."""
        return self.drafted + self.solved

    @property
    def steps_taken(self) -> Ints:
        """Denoising steps; a preview's are the first of the full solution's."""
        if self.strategy.preview is not None:
            first = self.strategy.preview.num_inference_steps
            return self.drafted * first + self.solved * (self.steps - first)
        draft = 0 if self.strategy.draft is None else self.strategy.draft.num_inference_steps
        return self.drafted * draft + self.solved * self.steps


def replay(
    strategy: Strategy,
    pool: Pool,
    steps: int,
    prompts: Sequence[int],
    calibration: Calibration | None = None,
    top_k: int = 1,
    samples: int | None = None,
) -> Replayed | None:
    """All jobs that the pool can tell of.

    Args:
        strategy: to replay.
        pool: the pool of candidates.
        steps: the checkpoint's steps, where the strategy names none.
        prompts: numbers of the prompts; the pool has as many samples of each as are used.
        calibration: the judge's calibration, for jobs that may stop.
        top_k: winners of a job.
        samples: maximum candidates of each prompt; None: all that the pool has.

    Returns:
        None while the pool has too few samples of these prompts.
    """
    configs = strategy.configs(steps)
    S = min(pool.depth(config, prompts) for config in configs)
    S = S if samples is None else min(S, samples)
    B = S // strategy.num_samples
    if not B or not prompts:
        return None
    solved, *coarse = (pool.samples(config, S).of(prompts, S) for config in configs)
    drafts = coarse[0] if coarse else None
    spec = job(strategy, steps, calibration, top_k)
    played = [
        [_play(spec, solved, drafts, row, block * spec.num_samples) for block in range(B)]
        for row in range(len(prompts))
    ]
    tables = {name: np.array([[getattr(one, name) for one in row] for row in played]) for name in _Job._fields}
    return Replayed(strategy, spec.num_inference_steps, list(prompts), S, **tables)


_REPLAYED = Revision(name="", revision="")  # a replayed job never runs


def job(strategy: Strategy, steps: int, calibration: Calibration | None, top_k: int) -> JobSpec:
    """The job that a request with these options becomes."""
    return JobSpec(
        id="replay", prompt="", num_samples=strategy.num_samples, top_k=top_k, seed=0, width=32, height=32,
        num_inference_steps=strategy.steps or steps, guidance_scale=1.0, draft=strategy.draft or strategy.preview,
        stop=strategy.stop, calibration=calibration, model=_REPLAYED, judge=_REPLAYED,
    )  # fmt: skip


class _Job(NamedTuple):
    """What became of one job; fields as of `Replayed`."""

    winners: list[int]
    correct: float
    margin: float
    drafted: int
    solved: int
    confidence: float
    kept: float


def _play(spec: JobSpec, full: Samples, drafts: Samples | None, row: int, first: int) -> _Job:
    """One job over the samples from `first` on."""
    own = slice(first, first + spec.num_samples)
    prefix = Prefix()
    drafted = solved = 0
    for heat in spec.heats():
        chosen = list(heat.candidates)
        if drafts is not None:
            chosen = promoted(spec, {i: drafts.verdicts[row][first + i] for i in chosen})
            drafted += heat.count
        solved += len(chosen)
        prefix = fold(spec, prefix, {heat.index: [Candidate(i, i, full.verdicts[row][first + i]) for i in chosen]})
        if prefix.stopped is not None:
            break
    winner = prefix.leaders[0]
    best = row, first + winner.index
    sure = prefix.stopped is Reason.CONFIDENT
    return _Job(
        [first + leader.index for leader in prefix.leaders],
        float(full.correct[best]),
        float(full.yes[best] - full.no[best]),
        drafted,
        solved,
        probability(winner.verdict, spec.calibration) if sure else math.nan,
        float(winner.index == int((full.yes[row, own] - full.no[row, own]).argmax())),
    )
