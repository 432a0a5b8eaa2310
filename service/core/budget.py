"""Effort and budget: the options with the best score for their cost, as measured on the shapes benchmark. Pure.

frontier.json holds the strategies that no cheaper strategy reaches in score (evaluation/results/scaling/frontier.py
writes it). The cost of a candidate comes from the checkpoint in use. The average number of candidates comes from
shapes.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bestofn.service.core.heat_schedule import HeatSchedule
from bestofn.service.core.jobs import Draft, Plan, Stop
from bestofn.service.core.request_model import RequestModel

Effort = Literal["low", "medium", "high", "max"]
FILE = Path(__file__).with_name("frontier.json")


class Budget(RequestModel):
    """Average cost of a job, without its text encoding."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    tflops: float | None = Field(default=None, strict=True, gt=0, description="Floating-point operations, 10**12.")
    seconds: float | None = Field(
        default=None, strict=True, gt=0, description="Seconds of all workers that are live now."
    )


class Measured(BaseModel):
    """A strategy of the frontier.

    Attributes:
        draft_share: steps of a draft as a share of those of a full solution.
        drafted: average number of drafted candidates of a job.
        solved: average number of candidates solved in full.
        score: share of correct winners.
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
    """All measured strategies, cheapest first, and the index of each named effort."""

    model_config = ConfigDict(frozen=True)
    strategies: tuple[Measured, ...]
    efforts: dict[Effort, int]


class Prices(BaseModel):
    """Cost of a checkpoint at one size.

    Attributes:
        step: TFLOP of a denoising step of a candidate, guidance included.
        verdict: TFLOP of decoding and judging an image.
        steps: denoising steps of a full solution.
    """

    model_config = ConfigDict(frozen=True)
    step: float
    verdict: float
    steps: int


@cache
def frontier() -> Frontier:
    """The frontier measured on shapes."""
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
    schedule = HeatSchedule(measured.num_samples, may_stop=measured.stop is not None, keep=keep)
    return Plan(
        num_samples=measured.num_samples,
        draft=draft,
        stop=measured.stop,
        expected_tflops=measured.drafted * drafted + measured.solved * solved,
        at_most_tflops=schedule.num_samples * drafted + schedule.num_promoted * solved,
        score_on_shapes=measured.score,
    )


def planned(prices: Prices, most_samples: int) -> list[Plan]:
    """Every plan within `most_samples` candidates, in the order of the frontier."""
    plans = (plan(one, prices) for one in frontier().strategies if one.num_samples <= most_samples)
    return [one for one in plans if one is not None]


def best(plans: list[Plan], tflops: float) -> Plan | None:
    """The plan with the best score within `tflops`; of equal scores the cheaper one. None if no plan fits."""
    within = [one for one in plans if one.expected_tflops <= tflops]
    return max(within, key=lambda one: (one.score_on_shapes, -one.expected_tflops), default=None)
