"""Winners as files, laid out as the evaluators of GenEval and GenEval 2 want them, which are run apart."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bestofn.evaluation.cost import Price
from bestofn.evaluation.pool import Pool
from bestofn.evaluation.replay import Replayed
from bestofn.evaluation.stats import Floats
from bestofn.evaluation.strategies import Strategy
from bestofn.judge.interface import PointwiseJudge
from bestofn.models.weight_files import whole_file
from bestofn.service.core.errors import SetupError

Draw = Callable[[str, int, int], NDArray[np.uint8]]  # prompt, seed, steps -> (H, W, 3)


def write(folder: Path, pool: Pool, replayed: Replayed, draw: Draw) -> Path:
    """Draws the winners of each prompt's first job.

    `<strategy>/00000/metadata.jsonl` and `samples/0000.png` ... are GenEval's layout, best winner first;
    `<strategy>/images.json` maps prompts to their best winner's file, as GenEval 2 reads it. Files that are there are
    kept, so that a run that was cut off goes on.

    Args:
        folder: a folder for each strategy is made in it.
        pool: that was replayed.
        replayed: one strategy.
        draw: an image from its seed.

    Returns:
        The strategy's folder.
    """
    key = folder / str(replayed.strategy).replace(" ", "_").replace(":", "-")
    best: dict[str, str] = {}
    for number, winners in zip(replayed.numbers, replayed.winners[:, 0], strict=True):
        task = pool.source.tasks[number]
        samples = key / f"{number:05d}" / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(task.metadata) + "\n", encoding="utf-8")
        for k, winner in enumerate(winners):
            file = samples / f"{k:04d}.png"
            if not file.is_file():
                with whole_file(file) as part:
                    image = Image.fromarray(draw(task.prompt, task.seed + int(winner), replayed.steps))
                    image.save(part, "PNG")
        best.setdefault(task.prompt, str((samples / "0000.png").resolve()))
    (key / "images.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    return key


def scores(folder: Path, pool: Pool, replayed: Replayed, judge: PointwiseJudge) -> dict[str, Any]:
    """What a judge that chose none of them says of the best winners that `write` drew, and what the pool's judge said.

    Args:
        folder: that `write` returned.
        pool, replayed: that `write` took.
        judge: unlike the pool's.

    Returns:
        Fields for one of the strategies in `summary`, whose `judged_yes` and `margin` they replace. Both judges'
        figures are then over the same winners.

    Raises:
        SetupError: the judge gives no verdict on any of them.
    """
    verdicts = []
    for number in replayed.numbers:
        with Image.open(folder / f"{number:05d}" / "samples" / "0000.png") as image:
            verdicts += judge.judge([image], [pool.source.tasks[number].prompt])
    there = [not verdict.broken for verdict in verdicts]
    given = [verdict for verdict in verdicts if not verdict.broken]
    if not given:
        raise SetupError("the judge of --scored-by gives no verdict on any winner: try it with bestofn rank")
    return {
        "scored": len(given),
        "scored_yes": float(np.mean([verdict.answer == "yes" for verdict in given])),
        "scored_margin": float(np.mean([verdict.margin for verdict in given])),
        **_judged(pool, replayed.margin[there, 0]),
    }


def with_little_choice(strategies: Sequence[Strategy], images: int) -> list[Strategy]:
    """Strategies of which half of the candidates or more are winners, so that their average shows no choice."""
    return [one for one in strategies if 1 < one.num_samples <= 2 * images and images > 1]


def summary(pool: Pool, replayed: Sequence[Replayed], price: Price) -> dict[str, Any]:
    """What is known of the strategies before an evaluator has seen the winners."""

    def fields(one: Replayed) -> dict[str, Any]:
        return {
            "strategy": str(one.strategy),
            "candidates": float(np.maximum(one.drafted, one.solved).mean()),
            "verdicts": float(one.verdicts.mean()),
            "tflops": float(price.of(one).mean()),
            **_judged(pool, one.margin),
        }

    return {**pool.source.identity, "strategies": [fields(one) for one in replayed]}


def _judged(pool: Pool, margin: Floats) -> dict[str, float | None]:
    """The fields of some winners' log-odds; the share of yes is None where the judge's yes is not known."""
    yes = None if pool.yes_above is None else float((margin > pool.yes_above).mean())
    return {"judged_yes": yes, "margin": float(margin.mean())}


def table(figures: dict[str, Any]) -> str:
    """The summary as Markdown."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    own = figures.get("scored_by")
    lines = [
        "| strategy | candidates | verdicts | TFLOP | winners judged yes | their log-odds |"
        + (" scored yes | log-odds |" if own else ""),
        "|---|---|---|---|---|---|" + ("---|---|" if own else ""),
        *(
            f"| {one['strategy']} | {one['candidates']:.1f} | {one['verdicts']:.1f} | {one['tflops']:.4g} | "
            f"{share(one['judged_yes'])} | {one['margin']:+.2f} |"
            + (f" {share(one['scored_yes'])} | {one['scored_margin']:+.2f} |" if own else "")
            for one in figures["strategies"]
        ),
    ]
    if own:
        whose = "Both judges' figures are over the best winner of each prompt's first job."
        lines += ["", f"Scored by {own['name']}, revision {own['revision']}. {whose}"]
    judges = {"judged_yes": f"revision {figures['judge']}", "scored_yes": own["name"] if own else ""}
    for field, name in judges.items():
        if any(field in one and one[field] is None for one in figures["strategies"]):
            lines += [
                "",
                f"The judge {name} has no calibration, so its yes is not known: fit one by `bestofn calibrate`.",
            ]
    return "\n".join(lines) + "\n"
