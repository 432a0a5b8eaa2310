"""bestofn calibrate: fit how sure the judge may be that the best of several images is right."""

import json as jsonlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestofn.cli import options
from bestofn.cli.commands.rank import ImageFiles, check_images
from bestofn.cli.console import err, need_packages, say
from bestofn.evaluation.labels import Labelled, LabelledPool, fields_of, read_labels
from bestofn.judge.calibration import FILE
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, load_settings

if TYPE_CHECKING:
    from bestofn.judge.interface import PointwiseJudge
    from bestofn.judge.verdict import Verdict
    from bestofn.service.engine.judge_loader import JudgeCheckpoint

EPILOG = """Examples:

`bestofn calibrate labels.jsonl --judge ./NVILA-Lite-2B-Verifier`

`bestofn calibrate labels.jsonl --judge Efficient-Large-Model/NVILA-Lite-2B-Verifier@main --out calibration.json`

`bestofn calibrate labels.jsonl --out calibration.json --curve curve.png`
"""

FEW = 100  # prompts; with fewer a reliability table says little


def calibrate(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help='Lines of {"image": PATH, "prompt": TEXT, "correct": true|false}, or the pool of bestofn eval.',
            show_default=False,
        ),
    ],
    judge: options.Judge = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; name it in BESTOFN_CALIBRATION.", show_default=f"{FILE} in the judge's folder"
        ),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="A plot to write: is the judge right more often among more images?", show_default="none"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what is written as JSON.")] = False,
) -> None:
    """Fit a judge's probabilities on labelled images, for `stop` and its `confidence`.

    Images of one prompt (or `group`) count as candidates of one job. The fit uses the best of the first 4, 8, 16 and 32
    of them, because choosing the best inflates the judge's numbers. The last table says how often the best of N is
    right: where it falls, search fools the judge. Use images such as your users see: four or more of each prompt, a
    hundred prompts or more, and none that you evaluate on.
    """
    need_packages("calibrating needs")
    read = read_labels(labels)

    from bestofn.evaluation.curve import LabelledCurve
    from bestofn.service.engine.judge_loader import find_judge
    from bestofn.training.judge.calibration_fit import calibrate as fit

    settings = load_settings(judge=judge)
    checkpoint = find_judge(settings.judge, settings.judge_max_tiles, settings.judge_api_key)
    if settings.judge_max_tiles is not None and out is None:
        raise SetupError(
            f"name a file with --out: the one in the judge's folder is not for {settings.judge_max_tiles} tiles"
        )
    revision = checkpoint.revision
    if isinstance(read, LabelledPool) and read.judge != revision.revision:
        raise SetupError(f"{labels} was judged by revision {read.judge}, and {revision.name} is {revision.revision}")
    file = out or checkpoint.file
    if file is None:
        raise SetupError(f"{revision.name} has no folder on this machine: name the file to write with --out")
    if out is None and file.exists():
        raise SetupError(f"{revision.name} has a calibration, {file}: name another file, or that one, with --out")
    if isinstance(read, LabelledPool):
        fields, source = read.fields, read.source
    else:
        fields, source = fields_of(read, _margins(read, checkpoint, settings)), labels.name
    try:
        report = fit(fields)
    except ValueError as error:
        raise SetupError(f"{labels}: {error}") from error
    images = sum(map(len, fields))
    if silent := images - report.images:
        say(f"warning: the judge gave no verdict on {silent} of {images} images, which are left out of the fit")
    if report.prompts < FEW:
        say(f"warning: {report.prompts} prompts are few to calibrate on; {FEW} or more are better")
    figures = report.to_json(revision.revision, source)
    written = jsonlib.dumps(figures, indent=1) + "\n"
    try:
        file.write_text(written, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{file} cannot be written ({error.strerror}): choose another file with --out") from error
    searched = LabelledCurve.of(fields)
    if curve is not None:
        from bestofn.evaluation import plots

        plots.deep(curve, searched.points)
    if json:
        typer.echo(written, nl=False)
        return
    typer.echo("promised    on average  came true  of")
    for row in report.table:
        typer.echo(f"{row.low:.2f}-{row.high:.2f}   {row.promised:10.3f}  {row.realised:9.3f}  {row.count}")
    typer.echo(
        f"error {figures['calibration_error_before']:.3f} before, {figures['calibration_error']:.3f} after, on prompts "
        f"left out of the fit; {report.prompts} prompts, {report.images} images"
    )
    fitted = report.calibration
    typer.echo(
        f"{file}  temperature {fitted.temperature:.3f}, bias {fitted.bias:.3f}, never more than {fitted.ceiling:.3f}"
    )
    for line in searched.lines():
        typer.echo(line)


def verdicts_on(
    images: Sequence[Labelled], judging: "PointwiseJudge"
) -> Iterator[tuple["Verdict", tuple[int, int], float]]:
    """The judge's verdict on each image, judged alone, with the image's size and the seconds that it took."""
    from rich.progress import track

    files = ImageFiles([one.image for one in images])
    for i in track(range(len(images)), "judging", console=err, transient=True, disable=not err.is_terminal):
        image, start = files[i], time.perf_counter()
        try:
            (verdict,) = judging.judge([image], [images[i].prompt])
        except ValueError as error:
            raise SetupError(f"{images[i].image}: {error}") from error
        yield verdict, image.size, time.perf_counter() - start


def _margins(images: list[Labelled], judge: "JudgeCheckpoint", settings: Settings) -> list[float]:
    """The judge's log-odds on each image."""
    import torch

    from bestofn.service.engine.loader import devices

    check_images(list(dict.fromkeys(one.image for one in images)))
    judging = judge.load(torch.device(devices(settings)[0]))
    return [verdict.margin for verdict, _, _ in verdicts_on(images, judging)]
