"""Effort and budget: which options spend compute best, as measured once on the shapes benchmark. Pure.

frontier.json holds the strategies that no other beats in score for their cost (docs/scaling/frontier.py writes it from
the pool of docs/scaling). What a candidate costs is the checkpoint's own; how many a job needs until it stops, and
which options are best, is taken over from shapes.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bestofn.service.core.heat_schedule import HeatSchedule
from bestofn.service.core.jobs import Draft, Plan, Stop

Effort = Literal["low", "medium", "high", "max"]
FILE = Path(__file__).with_name("frontier.json")


class Budget(BaseModel):
    """What a job may cost on average, its text not counted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    tflops: float | None = Field(default=None, strict=True, gt=0, description="Floating-point operations, 10**12.")
    seconds: float | None = Field(default=None, strict=True, gt=0, description="Of all workers that are live now.")


class Measured(BaseModel):
    """A strategy of the frontier.

    `draft_share` is a draft's steps as a share of a full solution's. `drafted` and `solved` are candidates of a job on
    average, `score` the share of its winners that were right.
    """

    model_config = ConfigDict(frozen=True)
    num_samples: int
    draft_share: float | None = None
    keep: float | None = None
    stop: Stop | None = None
    drafted: float
    solved: float
    score: float


class Frontier(BaseModel):
    """All of them, cheapest first, and those that have a name."""

    model_config = ConfigDict(frozen=True)
    strategies: tuple[Measured, ...]
    efforts: dict[Effort, int]


class Prices(BaseModel):
    """TFLOP of a checkpoint at one size: a denoising step of a candidate, guidance included, and a decoded and judged
    picture; steps of a full solution."""

    model_config = ConfigDict(frozen=True)
    step: float
    verdict: float
    steps: int


@cache
def frontier() -> Frontier:
    """As measured on shapes."""
    return Frontier.model_validate_json(FILE.read_bytes())


def plan(measured: Measured, prices: Prices) -> Plan | None:
    """The plan of a strategy with this checkpoint; None if its drafts would have as many steps as full solutions."""
    draft = None
    if measured.draft_share is not None and measured.keep is not None:
        steps = max(1, round(measured.draft_share * prices.steps))
        if steps >= prices.steps:
            return None
        draft = Draft(num_inference_steps=steps, keep=measured.keep)
    drafted = 0 if draft is None else draft.num_inference_steps * prices.step + prices.verdict
    solved = prices.steps * prices.step + prices.verdict
    keep = None if draft is None else draft.keep
    schedule = HeatSchedule.of(measured.num_samples, may_stop=measured.stop is not None, keep=keep)
    return Plan(
        num_samples=measured.num_samples,
        draft=draft,
        stop=measured.stop,
        expected_tflops=measured.drafted * drafted + measured.solved * solved,
        at_most_tflops=schedule.num_samples * drafted + schedule.num_promoted * solved,
        score_on_shapes=measured.score,
    )


def planned(prices: Prices, most_samples: int) -> list[Plan]:
    """Every plan that this checkpoint and server can carry out, in the order of the frontier."""
    plans = (plan(one, prices) for one in frontier().strategies if one.num_samples <= most_samples)
    return [one for one in plans if one is not None]


def best(plans: list[Plan], tflops: float) -> Plan | None:
    """The plan of the best score whose expected cost is within the budget, the cheaper of two; None if none is."""
    within = [one for one in plans if one.expected_tflops <= tflops]
    return max(within, key=lambda one: (one.score_on_shapes, -one.expected_tflops), default=None)
