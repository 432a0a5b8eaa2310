"""bestofn eval --judges: several judges on the same images, labelled by a person or drawn from the benchmark."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bestofn.cli.commands.calibrate import verdicts_on
from bestofn.cli.commands.rank import check_images
from bestofn.evaluation.labels import Labelled, LabelledPool, fields_of, read_labels
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import load_settings

if TYPE_CHECKING:
    from bestofn.evaluation.judge_comparison import JudgeRun
    from bestofn.service.engine.judge_loader import JudgeCheckpoint

OPTIONS = ("judges", "labels", "out", "device", "json")
DRAWN = ("samples", "prompts", "model")  # options of the benchmark, where no labels are named


def judge_names(context: typer.Context, judges: str | None, labels: Path | None) -> list[str]:
    """The judges' names; refuses options that do not go with them."""
    if judges is None:
        raise typer.BadParameter("--labels is for --judges: name them too")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in OPTIONS + DRAWN * (labels is None) and source is not None and source.name == "COMMANDLINE":
            why = "" if labels is None else " on --labels, which draws nothing"
            raise typer.BadParameter(f"--{name.replace('_', '-')} is not for --judges{why}: leave it out")
    names = [name.strip() for name in judges.split(",")]
    if "" in names or len(set(names)) < max(2, len(names)):
        raise typer.BadParameter(
            f"--judges must have two names or more, each once, such as shapes,clip:./pickscore; got {judges!r}"
        )
    return names


def find_judges(names: Sequence[str]) -> "list[JudgeCheckpoint]":
    """Judges by their names, as --judge takes them."""
    from bestofn.service.engine.judge_loader import find_judge

    each = [load_settings(judge=name) for name in names]
    return [find_judge(one.judge, one.judge_max_tiles, one.judge_api_key) for one in each]


def compare_judges(judges: "Sequence[JudgeCheckpoint]", labels: Path, device: str) -> dict[str, Any]:
    """The figures of `judge_comparison.compare`.

    Args:
        judges: found and not loaded.
        labels: list of labelled images.
        device: where they run.
    """
    from bestofn.evaluation.judge_comparison import compare

    images = read_labels(labels)
    if isinstance(images, LabelledPool):
        raise SetupError(
            f"{labels} is a pool, which has one judge's verdicts and no images: name a list of labelled images"
        )
    if not images:
        raise SetupError(f"{labels} is empty: write a line of JSON for each image, as for bestofn calibrate")
    check_images(list(dict.fromkeys(one.image for one in images)))
    return compare([_run(judge, images, device, labels.name) for judge in judges])


def _run(checkpoint: "JudgeCheckpoint", images: Sequence[Labelled], device: str, source: str) -> "JudgeRun":
    """One judge on all images; its own calibration decides which rewards are a yes."""
    import torch

    from bestofn.evaluation.judge_comparison import JudgeRun
    from bestofn.models.flops import TERA
    from bestofn.service.engine.judge_loader import calibration_of, yes_above
    from bestofn.training.judge.calibration_fit import calibrate

    judge = checkpoint.load(torch.device(device), calibration_of(checkpoint, None))
    verdicts, sizes, seconds = zip(*verdicts_on(images, judge), strict=True)
    fields = fields_of(images, [verdict.margin for verdict in verdicts])
    try:
        fitted = calibrate(fields).to_json(checkpoint.revision.revision, source)
    except ValueError:
        fitted = None
    flops = [judge.flops(width, height, one.prompt) for (width, height), one in zip(sizes, images, strict=True)]
    return JudgeRun(
        checkpoint.revision.name,
        checkpoint.revision.revision,
        verdicts,
        [one.correct for one in images],
        fields,
        fitted,
        statistics.fmean(flops) / TERA or None,
        statistics.median(seconds),
        yes_above(checkpoint) is not None,
    )
