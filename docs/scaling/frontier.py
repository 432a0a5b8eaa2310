"""Writes service/frontier.json from docs/scaling/scaling.json: strategies that no cheaper one reaches in score, and the
four efforts among them: `python docs/scaling/frontier.py`.

The efforts low, medium and high are the cheapest strategies whose score is that of plain best of 4, 8 and 32, within
0.02 at one-sided 95 %; max is the best of all.
"""

import json
from pathlib import Path

from bestofn.service.effort import FILE, Effort, Frontier, Measured
from bestofn.service.evaluation.strategies import Strategy

SCALING = Path(__file__).with_name("scaling.json")
REACHES: dict[Effort, str] = {"low": "4", "medium": "8", "high": "32"}
LOSS = 0.02


def frontier(figures: dict) -> Frontier:
    """Of the strategies that a request can ask for, at the checkpoint's steps, replayed from all samples."""
    told = [(Strategy.parse(one["strategy"]), one) for one in figures["strategies"]]
    most = max(one["samples"] for one in figures["strategies"])
    asked = [
        (strategy, one)
        for strategy, one in told
        if strategy.steps is None and strategy.preview is None and one["samples"] == most
    ]
    asked.sort(key=lambda pair: pair[1]["tflops"])
    kept, best = [], 0.0
    named = {
        effort: min((one["tflops"], one["strategy"]) for _, one in asked if one["loss"][N]["upper_bound"] <= LOSS)[1]
        for effort, N in REACHES.items()
    }
    named["max"] = max((one["score"], -one["tflops"], one["strategy"]) for _, one in asked)[2]
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
