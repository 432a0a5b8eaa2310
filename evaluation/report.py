"""What an evaluation says: tables, JSON and plots of scaling curve, strategies, drafts, stopping and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bestofn.evaluation.cost import Price
from bestofn.evaluation.curve import Point, auc, curve, of_chosen, share_of_the_way
from bestofn.evaluation.files import write_report
from bestofn.evaluation.pool import Pool, Samples, SamplingConfig
from bestofn.evaluation.regret import MOST_LOSS, preset, regret
from bestofn.evaluation.replay import Replayed, replay
from bestofn.evaluation.stats import Floats, Prompts
from bestofn.evaluation.strategies import Strategy
from bestofn.evaluation.tables import tables
from bestofn.judge.calibration import Calibration

REFERENCES = (4, 8, 16, 32, 128)  # plain best-of-N with which every strategy is compared
PAR = 32  # the N that measures the luck of the first candidates
PRESETS = (8, 32, 128)  # references that a preset has to reach within MOST_LOSS
COPIES = 4
HEAT = 16  # candidates among which drafts are ranked
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True)
class ReportRequest:
    """What is reported.

    Attributes:
        prompts: numbers of the prompts.
        strategies: to be compared.
        steps: the checkpoint's.
        prices: a candidate's cost by part, in "tflops" and in "seconds".
        calibration: the judge's calibration, for jobs that may stop.
        machine: on which seconds were measured.
    """

    prompts: Sequence[int]
    strategies: Sequence[Strategy]
    steps: int
    prices: Mapping[str, Price]
    calibration: Calibration | None
    machine: str


def summary(pool: Pool, request: ReportRequest) -> dict[str, Any]:
    """Every figure of the report."""
    full, prompts = SamplingConfig(request.steps), Prompts(pool.tags(request.prompts))
    depth = pool.depth(full, request.prompts)
    everything = pool.samples(full, depth).of(request.prompts, depth)
    identity = pool.source.identity
    deepest = max((pool.depth(full, [number]) for number in request.prompts), default=0)
    out: dict[str, Any] = {
        "model": identity["model"],
        "judge": identity["judge"],
        "machine": request.machine,
        "steps": request.steps,
        "candidates": {str(config): count for config, count in pool.counts().items()},
        "all": _curves(pool, everything),
    }
    if deepest > depth:
        few = [number for number in request.prompts if pool.depth(full, [number]) >= deepest]
        out["deep"] = _curves(pool, pool.samples(full, deepest).of(few, deepest))
    never = [number for number in request.prompts if pool.source.tasks[number].held_out]
    if never:
        out["never_trained"] = _curves(pool, everything.of(never, depth))
    out["controls"] = _controls(everything, prompts)
    out["prices"] = {unit: asdict(price) for unit, price in request.prices.items()}
    played = [
        replayed
        for strategy in request.strategies
        if (replayed := replay(strategy, pool, request.steps, request.prompts, request.calibration)) is not None
    ]
    plain = _Plain(pool, request, played)
    out["strategies"] = [_strategy_figures(one, request, prompts, plain) for one in played]
    out |= _choices(pool, request, played, plain)
    out["drafts"] = [
        {"steps": config.steps, "after": config.after, **asdict(one)}
        for config in sorted(pool.chunks, key=str)
        if config != full and config.steps <= request.steps
        if (one := ranking(pool, full, config, request.prompts)) is not None
    ]
    return out


class _Plain:
    """Plain best-of-N, with which every strategy is compared over the same candidates.

    The pool has more of some kinds of candidates than of others, and every strategy is replayed from all that there
    are. Scores are corrected for the luck of a prompt's first candidates: by the difference of plain best of 32
    over these and over all candidates.
    """

    def __init__(self, pool: Pool, request: ReportRequest, played: Sequence[Replayed]) -> None:
        self._pool, self._request = pool, request
        self.depth = pool.depth(SamplingConfig(request.steps), request.prompts)
        self._scores: dict[tuple[int, int], Floats | None] = {
            (one.strategy.num_samples, one.samples): one.correct.mean(1)
            for one in played
            if one.strategy == Strategy(one.strategy.num_samples)
        }

    def score(self, N: int, samples: int) -> Floats | None:
        """(P,) score of plain best of N over the first samples of each prompt; None if they are fewer than N."""
        if (N, samples) not in self._scores:
            asked = self._request
            replayed = replay(Strategy(N), self._pool, asked.steps, asked.prompts, samples=samples)
            self._scores[N, samples] = None if replayed is None else replayed.correct.mean(1)
        return self._scores[N, samples]

    def without_luck(self, score: Floats, samples: int) -> Floats:
        """(P,) score of a strategy, corrected for the luck of the first samples of each prompt."""
        for N in (PAR, *reversed(REFERENCES)):
            here, everywhere = self.score(N, samples), self.score(N, self.depth)
            if here is not None and everywhere is not None:
                return score - here + everywhere
        return score

    def loss(self, N: int, score: Floats, samples: int) -> Floats | None:
        """(P,) loss of a strategy against plain best of N over the first samples; None if the pool has too few."""
        here, everywhere = self.score(N, samples), self.score(N, self.depth)
        if here is not None:
            return here - score
        return None if everywhere is None else everywhere - self.without_luck(score, samples)


def _curves(pool: Pool, samples: Samples) -> dict[str, Any]:
    points = curve(samples.correct, samples.margin, pool.tags(samples.numbers))
    above = pool.yes_above
    return {
        "prompts": len(samples.numbers),
        "samples": samples.correct.shape[1],
        "points": [asdict(point) for point in points],
        "share_of_the_way": share_of_the_way(points),
        "judge_accuracy": None if above is None else float(np.mean((samples.margin > above) == (samples.correct > 0))),
        "judge_auc_within_prompt": auc(samples.correct, samples.margin),
    }


def _controls(samples: Samples, prompts: Prompts) -> dict[str, Any]:
    """What must not gain: verdicts shuffled among a prompt's candidates, and N times the same candidate."""
    N = samples.correct.shape[1]
    shuffled = np.random.default_rng(1).permuted(samples.margin, axis=1)
    correct, margin = (np.repeat(values, COPIES, 1) for values in (samples.correct, samples.margin))
    values = {
        "one sample": samples.correct.mean(1),
        f"best of {N}, verdicts shuffled": of_chosen(samples.correct, shuffled, N),
        f"best of {COPIES} copies of one": of_chosen(correct, margin, COPIES),
    }
    return {name: {"score": prompts.mean(v), "interval": prompts.interval(v)} for name, v in values.items()}


def _choices(pool: Pool, request: ReportRequest, played: Sequence[Replayed], plain: _Plain) -> dict[str, Any]:
    """Loss of a budget's plan against the best fixed strategy, and cost and loss of presets.

    Both are measured on prompts that did not choose them, so some category needs two. Only strategies replayed from all
    samples are candidates: of many noisy scores the best is the luckiest.
    """
    asked = [
        one
        for one in played
        if one.strategy.steps is None and one.strategy.preview is None and one.samples == plain.depth
    ]
    tags = pool.tags(request.prompts)
    if len(asked) < 2 or "tflops" not in request.prices or len(tags) == len(set(tags)):
        return {"planner": None, "presets": {}}
    price = request.prices["tflops"]
    score = np.array([one.correct.mean(1) for one in asked])
    cost = np.array([price.of(one).mean(1) for one in asked])
    there = {str(one.strategy): k for k, one in enumerate(asked)}
    presets = {
        str(N): asdict(preset(score[k] - score, cost, tags, MOST_LOSS)) | {"of": Prompts(tags).mean(cost[k])}
        for N in PRESETS
        if (k := there.get(str(Strategy(N)))) is not None
    }
    return {"planner": asdict(regret(score, cost, tags)), "presets": presets}


def _strategy_figures(replayed: Replayed, request: ReportRequest, prompts: Prompts, plain: _Plain) -> dict[str, Any]:
    score = plain.without_luck(replayed.correct.mean(1), replayed.samples)
    losses = {N: plain.loss(N, replayed.correct.mean(1), replayed.samples) for N in REFERENCES}
    return {
        "strategy": str(replayed.strategy),
        "samples": replayed.samples,
        "jobs": int(replayed.correct.size),
        "score": prompts.mean(score),
        "interval": prompts.interval(score),
        "by_category": prompts.by_category(score),
        "drafted": prompts.mean(replayed.drafted.mean(1)),
        "solved": prompts.mean(replayed.solved.mean(1)),
        "candidates": prompts.mean(np.maximum(replayed.drafted, replayed.solved).mean(1)),
        "steps": prompts.mean(replayed.steps_taken.mean(1)),
        "verdicts": prompts.mean(replayed.verdicts.mean(1)),
        **{unit: prompts.mean(price.of(replayed).mean(1)) for unit, price in request.prices.items()},
        "keeps_the_best": prompts.mean(replayed.kept.mean(1)),
        "loss": {
            str(N): {"mean": prompts.mean(loss), "upper_bound": prompts.upper_bound(loss)}
            for N, loss in losses.items()
            if loss is not None
        },
        "confidence": _confidence(replayed),
    }


def _confidence(replayed: Replayed) -> list[dict[str, float]]:
    """Promised against realised, where jobs stopped because the judge was sure."""
    sure = ~np.isnan(replayed.confidence)
    promised, realised = replayed.confidence[sure], replayed.correct[sure]
    bins = np.digitize(promised, BINS[1:-1])
    return [
        {
            "jobs": int((bins == i).sum()),
            "promised": float(promised[bins == i].mean()),
            "realised": float(realised[bins == i].mean()),
        }
        for i in range(len(BINS) - 1)
        if (bins == i).any()
    ]


@dataclass(frozen=True)
class DraftRanking:
    """How well drafts or previews foretell full solutions, over prompts x heats of 16.

    Attributes:
        jobs: heats.
        spearman: rank correlation of the judge's log-odds within a heat, mean over heats.
        retention: share of heats whose best full solution is among the best 1, 2, 4 and 8 drafts.
    """

    jobs: int
    spearman: float
    retention: dict[int, float]


def ranking(pool: Pool, full: SamplingConfig, coarse: SamplingConfig, prompts: Sequence[int]) -> DraftRanking | None:
    """None while the pool has no complete heat of either for one of these prompts."""
    S = min(pool.depth(full, prompts), pool.depth(coarse, prompts)) // HEAT * HEAT
    if not S or not prompts:
        return None
    return foretold(*(pool.samples(config, S).of(prompts, S).margin.reshape(-1, HEAT) for config in (full, coarse)))


def foretold(final: Floats, draft: Floats) -> DraftRanking:
    """The same of the judge's log-odds on J heats of 16.  # (J, 16), (J, 16)"""
    places = _ranks(-draft)  # 0 is the best draft
    best = places[np.arange(len(final)), final.argmax(1)]
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (_ranks(final), _ranks(draft)))
    correlation = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return DraftRanking(len(final), float(correlation.mean()), {k: float((best < k).mean()) for k in (1, 2, 4, 8)})


def _ranks(values: Floats) -> Floats:  # (J, 16)
    return np.asarray(values.argsort(1, kind="stable").argsort(1, kind="stable"), np.float64)


def write(folder: Path, figures: Mapping[str, Any]) -> None:
    """scaling.json, scaling.md and, where matplotlib is installed, plots in `folder`."""

    def draw(plots: ModuleType) -> None:
        plots.curve(folder / "scaling.png", [Point(**point) for point in figures["all"]["points"]])
        if "deep" in figures:
            plots.deep(folder / "deep.png", [Point(**point) for point in figures["deep"]["points"]])
        if figures["strategies"]:
            plots.trade(folder / "trade.png", figures["strategies"])

    write_report(folder, "scaling", figures, tables(figures), draw)
