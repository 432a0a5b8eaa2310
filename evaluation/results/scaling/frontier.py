"""Writes service/core/frontier.json from evaluation/results/scaling/scaling.json.

The file has the strategies that no cheaper one reaches in score. Four of them are the efforts. Low, medium and high are
the cheapest whose score is that of plain best of 4, 8 and 32, within 0.02 at one-sided 95 %. Max has the best score.
Run `python evaluation/results/scaling/frontier.py`.
"""

import json
from pathlib import Path

from bestofn.evaluation.strategies import Strategy
from bestofn.service.core.budget import FILE, Effort, Frontier, Measured

SCALING = Path(__file__).with_name("scaling.json")
REACHES: dict[Effort, str] = {"low": "4", "medium": "8", "high": "32"}
LOSS = 0.02


def frontier(figures: dict) -> Frontier:
    """Of the strategies that may be chosen, those that are worth their cost."""
    asked, named = choosable(figures), efforts(figures)
    kept, best = [], 0.0
    for one in asked:
        if one["score"] > best or one["strategy"] in named.values():
            best = max(best, one["score"])
            kept.append(one)
    names = [one["strategy"] for one in kept]
    return Frontier(
        strategies=tuple(measured(Strategy.parse(one["strategy"]), one, figures["steps"]) for one in kept),
        efforts={effort: names.index(name) for effort, name in named.items()},
    )


def choosable(figures: dict) -> list[dict]:
    """What a request can ask for at the checkpoint's steps and was replayed from all samples, the cheapest first."""
    most = max(one["samples"] for one in figures["strategies"])
    told = [(Strategy.parse(one["strategy"]), one) for one in figures["strategies"] if one["samples"] == most]
    asked = [one for strategy, one in told if strategy.steps is None and strategy.preview is None]
    return sorted(asked, key=lambda one: one["tflops"])


def efforts(figures: dict) -> dict[Effort, str]:
    """The strategy of each effort."""
    asked = choosable(figures)
    named = {
        effort: min((one["tflops"], one["strategy"]) for one in asked if one["loss"][N]["upper_bound"] <= LOSS)[1]
        for effort, N in REACHES.items()
    }
    return named | {"max": max((one["score"], -one["tflops"], one["strategy"]) for one in asked)[2]}


def measured(strategy: Strategy, one: dict, steps: int) -> Measured:
    return Measured(
        num_samples=strategy.num_samples,
        draft_share=None if strategy.draft is None else strategy.draft.num_inference_steps / steps,
        keep=None if strategy.draft is None else strategy.draft.keep,
        stop=strategy.stop,
        drafted=round(one["drafted"], 3),
        solved=round(one["solved"], 3),
        score=round(one["score"], 4),
    )


if __name__ == "__main__":
    FILE.write_text(frontier(json.loads(SCALING.read_text())).model_dump_json(indent=1, exclude_none=True) + "\n")
