"""Model card of a trained judge, written by the training run: settings, rounds, scores and calibration."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bestofn.judge.calibration import FILE as CALIBRATION
from bestofn.training.judge.settings import JudgeSettings

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
    for name, content in ((RECORD, asdict(training)), (CALIBRATION, dict(training.calibration))):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def card(training: Training) -> str:
    """The card as Markdown."""
    sections = [_ABOUT, _training(training), _scores(training), _calibration(training.calibration), _LIMITS]
    return "\n".join(sections)


_ABOUT = """# shapes: the embedded judge

A small NVILA in VILA's layout, trained on composed scenes and on images of the shapes generator. It reads a 64x64 image
and a prompt of the shapes world and answers `yes` or `no`; the engine compares the logits of the two words. It runs
through the same code as NVILA-Lite-2B-Verifier.

    bestofn rank "a photo of a red star left of a blue circle" *.png        # uses this judge by default

| part | layers | parameters |
|---|---|---|
| `vision_tower/` | ResNet with batch norm: 7x7 stem and pooling to 16x16, widths 64 and 128, 8x8 cells | 0.66 M |
| `mm_projector/` | `mlp_downsample_2x2_fix`: 2x2 cells become one of 16 tokens | 0.08 M |
| `llm/` | Qwen2, 4 layers, width 128, 4 heads; a tokenizer of whole words | 0.87 M |

Float16 on disk, 3.3 MB. `bestofn.json` holds the question (the bare prompt) and the known words; other words become
"unknown". Images of other sizes are resized to 64x64. `transformers.AutoTokenizer` would rebuild Qwen2's tokenizer
whatever `tokenizer.json` says; load `PreTrainedTokenizerFast`, as `bestofn.judge` does.
"""

_LIMITS = """## Limits

- It knows one to five objects of 14 to 36 pixels on a soft grey background and nothing else.
- Outlines near the evaluator's limit and objects with a trace of a second colour remain its hardest cases.
"""


def _training(training: Training) -> str:
    settings, stages = training.settings, training.stages
    rendered, places, mix = settings["rendered_mix"], settings["place_mix"], settings["mix"]
    warmup = settings["vision_warmup_steps"]
    precision = "bfloat16, attention in float32" if settings["low_precision"] else "float32"
    updates, drawn = (sum(stage[name] for stage in stages) for name in ("updates", "drawn"))
    minutes = sum(stage["seconds"] for stage in stages) / 60
    head = ("stage", "drawn", "kept", "updates", "minutes", "scenes", "chosen", "AUC")
    paragraphs = [
        f"""This command wrote the weights and this page. The judge has revision `{training.revision}`, its generator
        `{settings["generator_revision"]}`. `{RECORD}` holds every setting and every score.""",
        "1. No rendered stage: the run began with the judge of revision `{start_revision}`.".format(**settings)
        if settings["start"]
        else f"""1. *Rendered*: {warmup} updates of the vision tower alone, from label maps over its 8x8 cells. Then
        {settings["rendered_steps"] - warmup} updates with {rendered["scenes"]} composed scenes each, of which
        {rendered["flawed"]:.0%} have flawed objects.""",
        f"""2. *Places*: {settings["place_steps"]} updates with {places["place_pairs"]} minimal pairs each, all with
        swapped places, and {places["scenes"]} scenes. Among other flaws, places were never learned.""",
        f"""3. *Round 0*: {settings["images"]} images of each of {settings["prompts"]} training prompts.""",
        f"""4. *Adversarial rounds* ({settings["adversarial_rounds"]}): {settings["adversarial_images"]} images of each
        of {settings["adversarial_prompts"]} prompts, ranked by the judge of the round before. Kept are its best four,
        every wrong image among its best 16, the right image it ranks lowest, and two other right ones.""",
        "5. *Decay*: updates on all rounds, while the learning rate falls to zero.",
        f"""From round 0 on a batch holds {mix["group_images"]} images of each of {mix["groups"]} prompts,
        {mix["pairs"]} minimal pairs, {mix["place_pairs"]} more with swapped places, and {mix["scenes"]} scenes, of
        which {mix["flawed"]:.0%} are flawed. A minimal pair is one scene twice: right for a prompt, then wrong because
        one object is spoilt, or because two have each other's colour or place. Scenes and pairs use outlines of
        generated objects.""",
        """The exact evaluator labels every image: the answers, a description, and of each cell's object the shape,
        colour, template overlap and centre. Malformed shapes and mixed colours have classes of their own. Words of a
        prompt before its end are answered too: whether a named object is there, and, after "left of", whether one like
        it lies left of any other. The loss adds answers,
        descriptions, label maps and the order within a prompt and within a pair. No training image is drawn for a
        prompt of the benchmark or of validation. No question, whatever its answer, names a combination that is held
        out of training.""",
        f"""Muon for matrices, AdamW for the rest. Matrix products in {precision}. One thread, {updates:,} updates,
        {drawn:,} images drawn, {minutes:.0f} minutes of training besides the drawing, on a processor shared with other
        work.""",
        _table(head, [_stage_row(stage) for stage in stages]),
        f"""Scores are taken at the end of a stage on data it was not trained on. *scenes*: right answers on unseen
        scenes. *chosen*: share of right images among the best of {settings["validation_images"]} images of each
        validation prompt; a random image is right in {stages[-1]["sample"]:.3f}, the best possible choice in
        {stages[-1]["oracle"]:.3f}. *AUC*: probability that a right image outranks a wrong one of its prompt.""",
    ]
    command = f"    bestofn train judge --run runs/judge --out my-judge{_options(settings)}"
    return "\n\n".join(["## Training", command, *map(_filled, paragraphs)]) + "\n"


def _filled(text: str) -> str:
    """A paragraph or a list item in lines of 120 characters; a table as it is."""
    if text.startswith("|"):
        return text
    indent = "   " if text[0].isdigit() else ""
    words = " ".join(text.split())
    return textwrap.fill(words, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _options(settings: Mapping[str, Any]) -> str:
    """Options of the command that differ from its defaults."""
    names = [one.name for one in fields(JudgeSettings) if one.name in settings and not isinstance(one.default, bool)]
    changed = [name for name in names if settings[name] != getattr(JudgeSettings, name, settings[name])]
    return "".join(f" --{name.replace('_', '-')} {settings[name]}" for name in changed)


def _stage_row(stage: Mapping[str, Any]) -> list[str]:
    counts = [f"{stage[name]:,}" if stage[name] else "" for name in ("drawn", "kept", "updates")]
    scores = [f"{stage[name]:.3f}" for name in ("accuracy", "chosen", "auc")]
    return [stage["stage"], *counts, f"{stage['seconds'] / 60:.0f}", *scores]


def _scores(training: Training) -> str:
    last = training.stages[-1]
    rows = [(name, f"{last[key]:.3f}") for key, name in CATEGORIES.items() if key in last]
    return f"""## Scores

Right answers on {training.settings["scenes"]} unseen scenes, half of them with flawed objects:

{_table(("", "right"), rows)}
"""


def _calibration(fit: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['promised']:.3f}",
            f"{row['realised']:.3f}",
            str(row["count"]),
        )
        for row in fit["reliability"]
    ]
    text = f"""`{CALIBRATION}` turns log-odds into the probability that the best of 4 to 32 candidates is right. It was
    fitted on {fit["images"]:,} images of {fit["prompts"]} prompts of all combinations, held-out ones too, none of the
    training. Temperature {fit["temperature"]:.3f}, bias {fit["bias"]:.3f}, ceiling {fit["ceiling"]:.3f}. Its
    probabilities are off by {fit["calibration_error"]:.3f} on average, the judge's own by
    {fit["calibration_error_before"]:.3f}."""
    table = _table(("predicted", "mean", "right", "leaders"), rows)
    return "\n\n".join(["## Calibration", _filled(text), table]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
