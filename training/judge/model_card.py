"""Model card of a trained judge, written by the training run: settings, rounds, scores and calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bestofn.judge.calibration import FILE as CALIBRATION

CARD, RECORD = "README.md", "training.json"

CATEGORIES = {
    "accuracy": "all",
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "counting_color": "counting with colours",
    "colors": "colours",
    "position": "position",
    "position_color": "position with colours",
    "color_attr": "attribution",
}
"""Scores on unseen scenes, in the order of the card."""


@dataclass(frozen=True)
class Training:
    """Everything the card reports.

    Attributes:
        settings: settings of the run, with the revision of the generator.
        stages: figures of each stage: images drawn and kept, updates, seconds, held-out scores.
        revision: revision of the judge that the run wrote.
        calibration: contents of its calibration file.
    """

    settings: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]
    revision: str
    calibration: Mapping[str, Any]


def write_card(folder: Path, training: Training) -> None:
    """Write the card, the record of the run and the calibration into a judge's folder."""
    (folder / CARD).write_text(card(training), encoding="utf-8")
    for name, fields in ((RECORD, asdict(training)), (CALIBRATION, dict(training.calibration))):
        (folder / name).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def card(training: Training) -> str:
    """The card as Markdown."""
    settings, stages, fit = training.settings, training.stages, training.calibration
    last = stages[-1]
    drawn, updates = sum(stage["drawn"] for stage in stages), sum(stage["updates"] for stage in stages)
    minutes = sum(stage["seconds"] for stage in stages) / 60
    precision = "bfloat16, attention in float32" if settings["low_precision"] else "float32"
    rendered, mix = settings["rendered_mix"], settings["mix"]
    reliability = [(f"{row['low']:.2f} to {row['high']:.2f}", row) for row in fit["reliability"]]
    rounds = [
        (
            stage["stage"],
            f"{stage['drawn']:,}" if stage["drawn"] else "",
            f"{stage['kept']:,}" if stage["kept"] else "",
            f"{stage['updates']:,}",
            f"{stage['seconds'] / 60:.0f}",
            f"{stage['accuracy']:.3f}",
            f"{stage['chosen']:.3f}",
            f"{stage['auc']:.3f}",
        )
        for stage in stages
    ]
    return f"""# shapes: the embedded judge

A small NVILA in VILA's layout, trained on composed scenes and on the shapes generator's own images. It reads a 64x64 image and a
prompt of the shapes world and answers `yes` or `no`; the engine compares the logits of the two words. It runs through the same
code as NVILA-Lite-2B-Verifier.

    bestofn rank "a photo of a red star left of a blue circle" *.png        # uses this judge by default

| part | layers | parameters |
|---|---|---|
| `vision_tower/` | ResNet with batch norm: 7x7 stem and pooling to 16x16, stages of widths 64 and 128, 8x8 cells | 0.66 M |
| `mm_projector/` | `mlp_downsample_2x2_fix`: 2x2 cells become one of 16 tokens | 0.08 M |
| `llm/` | Qwen2, 4 layers, width 128, 4 heads; a tokenizer of whole words | 0.87 M |

Float16 on disk, 3.3 MB. `bestofn.json` holds the question (the bare prompt) and the words it knows; other words reach it as
"unknown". Images of other sizes are resized to 64x64. `transformers.AutoTokenizer` would rebuild Qwen2's tokenizer whatever
`tokenizer.json` says; load `PreTrainedTokenizerFast`, as `bestofn.judge` does.

## Training

    bestofn train judge --run runs/judge --out my-judge --generator {settings["generator"]} --seed {settings["seed"]}

That command wrote these weights and this page. Revision of the judge: `{training.revision}`, of the generator:
`{settings["generator_revision"]}`. `{RECORD}` has every setting and every score.

1. *Rendered*: {settings["vision_warmup_steps"]} updates of the vision tower alone, from label maps over its 8x8 cells, then
   {settings["rendered_steps"] - settings["vision_warmup_steps"]} updates on {rendered["scenes"]} composed scenes and \
{rendered["pairs"]} minimal pairs each.
2. *Round 0*: {settings["images"]} images of each of {settings["prompts"]} training prompts.
3. *Adversarial rounds*: {settings["adversarial_images"]} images of each of {settings["adversarial_prompts"]} prompts, judged by \
the judge of the round before. Kept are
   its best four, every wrong image among its best 16, the right image it ranks lowest and two other right ones.
4. *Decay*: all rounds together, the rate falling to zero.

From round 0 on a batch has {mix["group_images"]} images of each of {mix["groups"]} prompts, {mix["pairs"]} minimal pairs and \
{mix["scenes"]} scenes. A minimal pair is one scene twice: right for a prompt,
and wrong with one object spoilt. Scenes and pairs use outlines that the generator drew.

The exact evaluator labels every image: answers, a description, shape, colour and template overlap of each cell, with classes for
malformed shapes and mixed colours. The loss adds answers, description, label maps and the order within a prompt and within a pair.
No training image is drawn for a prompt of the benchmark or of validation. No question, whether its answer is yes or no, names a
combination that is held out of training.

Muon for matrices, AdamW for the rest. Matrix products in {precision}. One thread, {updates:,} updates, {drawn:,} images drawn,
{minutes:.0f} minutes of training besides the drawing, on a processor shared with other work.

{_table(("stage", "drawn", "kept", "updates", "minutes", "scenes", "chosen", "AUC"), rounds)}

Scores at the end of each stage, on data it was not trained on. *scenes*: right answers on unseen scenes. *chosen*: share of right
images among its choices of {settings["validation_images"]} images of each validation prompt; a random image is right in \
{last["sample"]:.3f}, the oracle's choice in {last["oracle"]:.3f}.
*AUC*: probability that a right image outranks a wrong one of its prompt.

## Scores

Right answers on unseen scenes with flawed objects:

{_table(("", "right"), [(name, f"{last[key]:.3f}") for key, name in CATEGORIES.items() if key in last])}

## Calibration

`{CALIBRATION}` turns log-odds into the probability that the best of 4 to 32 candidates is right. It was fitted on \
{fit["pictures"]:,} images of
{fit["prompts"]} calibration prompts, none with a held-out combination: temperature {fit["temperature"]:.3f}, bias \
{fit["bias"]:.3f}, ceiling {fit["ceiling"]:.3f}.
Probabilities are off by {fit["calibration_error"]:.3f} on average; the judge's own are off by \
{fit["calibration_error_before"]:.3f}.

{_table(("predicted", "mean", "right", "leaders"), [(span, f"{row['promised']:.3f}", f"{row['realised']:.3f}", str(row["count"])) for span, row in reliability])}

## Limits

- It knows one to five objects of 14 to 36 pixels on a soft grey background and nothing else.
- Outlines near the evaluator's limit and objects with a trace of a second colour remain its hardest cases.
- Some calibration prompts occur among the training prompts, with other images.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
