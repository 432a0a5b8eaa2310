"""bestofn eval --judges: several judges on the same labelled images."""

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


def judges_and_labels(context: typer.Context, judges: str | None, labels: Path | None) -> tuple[list[str], Path]:
    """The judges' names and the list of images; refuses options of the benchmark, and one of the two alone."""
    if judges is None or labels is None:
        raise typer.BadParameter("--judges and --labels go together: give both")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in OPTIONS and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name} is not for --judges, which draws nothing: leave it out")
    names = [name.strip() for name in judges.split(",")]
    if "" in names or len(set(names)) < max(2, len(names)):
        raise typer.BadParameter(
            f"--judges must have two names or more, each once, such as shapes,clip:./pickscore; got {judges!r}"
        )
    return names, labels


def compare_judges(names: Sequence[str], labels: Path, device: str | None) -> dict[str, Any]:
    """The figures of `judge_comparison.compare`; every judge is found before the first one judges.

    Args:
        names: as --judge takes them.
        labels: list of labelled images.
        device: where judges run; None: a GPU if there is one.
    """
    from bestofn.evaluation.judge_comparison import compare
    from bestofn.service.engine.judge_loader import find_judge
    from bestofn.service.engine.loader import devices

    images = read_labels(labels)
    if isinstance(images, LabelledPool):
        raise SetupError(
            f"{labels} is a pool, which has one judge's verdicts and no images: name a list of labelled images"
        )
    if not images:
        raise SetupError(f"{labels} is empty: write a line of JSON for each image, as for bestofn calibrate")
    check_images(list(dict.fromkeys(one.image for one in images)))
    each = [load_settings(judge=name, devices=device) for name in names]
    there = devices(each[0])[0]
    found = [find_judge(one.judge, one.judge_max_tiles, one.judge_api_key) for one in each]
    return compare([_run(judge, images, there, labels.name) for judge in found])


def _run(checkpoint: "JudgeCheckpoint", images: Sequence[Labelled], device: str, source: str) -> "JudgeRun":
    """One judge on all images; its own calibration decides which rewards are a yes."""
    import torch

    from bestofn.evaluation.judge_comparison import JudgeRun
    from bestofn.models.flops import TERA
    from bestofn.service.engine.judge_loader import calibration_of
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
    )
