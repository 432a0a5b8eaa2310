"""Writes service/frontier.json from docs/scaling/scaling.json: strategies that no cheaper one reaches in score, and the
four efforts among them: `python docs/scaling/frontier.py`.

An effort is the cheapest strategy whose score is that of plain best of 8, 16, 32 or 64, within 0.02 at one-sided 95 %.
"""

import json
from pathlib import Path

from bestofn.service.effort import FILE, Effort, Frontier, Measured
from bestofn.service.evaluation.strategies import Strategy

SCALING = Path(__file__).with_name("scaling.json")
REACHES: dict[Effort, str] = {"low": "8", "medium": "16", "high": "32", "max": "64"}
LOSS = 0.02


def frontier(figures: dict) -> Frontier:
    """Of all strategies that a request can ask for, at the checkpoint's steps."""
    told = [(Strategy.parse(one["strategy"]), one) for one in figures["strategies"]]
    asked = [(strategy, one) for strategy, one in told if strategy.steps is None and strategy.preview is None]
    asked.sort(key=lambda pair: pair[1]["tflops"])
    kept, best = [], 0.0
    named = {
        effort: min((one["tflops"], one["strategy"]) for _, one in asked if one["loss"][N]["upper_bound"] <= LOSS)[1]
        for effort, N in REACHES.items()
        if all(N in one["loss"] for _, one in asked)
    }
    for strategy, one in asked:
        if one["score"] > best or one["strategy"] in named.values():
            best = max(best, one["score"])
            kept.append((strategy, one))
    names = [one["strategy"] for _, one in kept]
    return Frontier(
        strategies=tuple(measured(strategy, one, figures["steps"]) for strategy, one in kept),
        efforts={effort: names.index(name) for effort, name in named.items()},
    )


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
