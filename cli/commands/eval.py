"""bestofn eval: what strategies of spending compute bring, measured on the shapes benchmark or drawn for another."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bestofn.cli import options
from bestofn.cli.commands.eval_judges import compare_judges, find_judges, judge_names
from bestofn.cli.console import need_packages, say
from bestofn.cli.progress_bar import StepBar
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, load_settings

TRIED_BYTES = 1 << 16
EPILOG = """A strategy is a line such as `n=32`, `n=16 steps=24`, `n=16 draft=4:0.125` (steps:keep) or `n=64 stop=0.97`.

Examples:

`bestofn eval --samples 32 --out curve`

`bestofn eval --strategy n=16 --strategy 'n=32 stop=0.9' --replay --out curve`

`bestofn eval --file evaluation_metadata.jsonl --strategy 'n=32 stop=0.97' --out geneval`

`bestofn eval --judges shapes,clip:./pickscore --labels labels.jsonl --out judges`

`bestofn eval --judges shapes,http://127.0.0.1:9000/score --prompts 40 --out judges`
"""


def evaluate(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the pool and the report; what it holds already is kept.")],
    samples: Annotated[
        int,
        typer.Option(min=1, help="Candidates of each prompt: without --judges a multiple of 32, rounded up."),
    ] = 32,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="How many of the prompts, evenly spaced.", show_default="all")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to draw winners of, instead of the benchmark: lines of text, or GenEval's or GenEval 2's. "
            "Each has a multiple of 32 candidates drawn, whatever n is."
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=16, help="Winners of each prompt of a file, best first.")] = 4,
    strategy: Annotated[list[str] | None, typer.Option(help="To compare; may be given more than once.")] = None,
    strategies: Annotated[Path | None, typer.Option(help="A file of strategies, one a line.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Draw and judge nothing: report from the pool.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="One thread each.", show_default="all cores")] = None,
    model: options.Model = None,
    judge: options.Judge = None,
    scored_by: Annotated[
        str | None,
        typer.Option(help="Another judge, which chooses nothing: scores winners of --file.", show_default="none"),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps final latents: with it, another --judge and --out draw nothing again."),
    ] = None,
    judges: Annotated[
        str | None, typer.Option(help="Judges to compare on the same images, separated by commas.", show_default="none")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images for --judges, as bestofn calibrate takes them.", show_default="the benchmark's, drawn"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0.", show_default="a GPU if there is one")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Draw and judge prompts once, and replay every strategy from that pool of candidates.

    On the benchmark of the shapes world the score is the share of winners that its evaluator accepts, averaged over
    GenEval's six categories. Of the prompts of a file the winners are written in the layouts of GenEval and GenEval 2,
    whose evaluators are run apart. A run that is cut off goes on where it was, and one with more samples or other
    strategies draws only what is lacking.

    With --judges, judges are compared on labelled images, into judges.json, judges.md and judges.png.
    """
    need_packages("an evaluation needs")
    from json import dumps

    from bestofn.service.engine.loader import devices

    if judges is not None or labels is not None:
        from bestofn.evaluation import judge_comparison

        found = find_judges(judge_names(context, judges, labels))
        _make_folder(out)
        settings = load_settings(model=model, devices=device)
        device = devices(settings)[0]
        labels = labels or _drawn(out, settings, device, samples, prompts)
        compared_judges = compare_judges(found, labels, device)
        judge_comparison.write(out, compared_judges)
        text = dumps(compared_judges, indent=1) + "\n" if json else judge_comparison.table(compared_judges)
        typer.echo(text, nl=False)
        return

    from bestofn.evaluation import geneval_export as folders
    from bestofn.evaluation import report
    from bestofn.evaluation.files import read_lines
    from bestofn.evaluation.pool import CHUNK
    from bestofn.evaluation.run import EvaluationRun
    from bestofn.evaluation.strategies import Strategy, parse_all
    from bestofn.evaluation.tables import tables
    from bestofn.evaluation.tasks import benchmark, read

    if scored_by is not None and not file:
        raise typer.BadParameter("--scored-by is for winners of --file: the benchmark has an evaluator")
    settings = load_settings(model=model, judge=judge, devices=device)
    if device is not None:
        device = devices(settings)[0]
    try:
        tasks = read(file) if file else benchmark()
        lines = [*(line for _, line in (read_lines(strategies) if strategies else [])), *(strategy or [])]
        compared = parse_all(lines) or [Strategy(2**i) for i in range(samples.bit_length())]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    evaluation = EvaluationRun.of(
        *(settings.model, settings.judge, device, tasks, out),
        replay=replay and not file,  # winners of a file are drawn, as they were judged
        latents=latents,
        scored_by=scored_by,
    )
    numbers = _spaced(prompts, len(tasks))
    if file and (little := folders.with_little_choice(compared, images)):
        say(
            f"warning: GenEval averages over the {images} winners of a prompt, which shows little of the choice with "
            f"{', '.join(map(str, little))}: take --images 1, or a greater n"
        )
    if not replay:
        evaluation.check(numbers, compared)
        _make_folder(out)
        if latents is not None:
            _make_folder(latents, "--latents")
        with StepBar() as bar, _room(out):
            evaluation.fill(
                *(numbers, 1 if file else samples, compared, processes),
                lambda done, wanted: bar.show("drawing", {"step": CHUNK * done, "steps": CHUNK * wanted}),
            )
    if not evaluation.complete(numbers):
        raise SetupError(f"{evaluation.pool.path} has no candidates of all these prompts: run without --replay")
    with _room(out):
        if file:
            figures = evaluation.winners(numbers, compared, images, out)
            text = folders.table(figures)
        else:
            figures = evaluation.measure(numbers, compared)
            report.write(out, figures)
            text = tables(figures)
    typer.echo(dumps(figures, indent=1) + "\n" if json else text, nl=False)


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Say what to do where a disk is full while the block writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SetupError(
            f"{out} cannot be written ({error.strerror}): make room, and run the same again; what is drawn is kept"
        ) from error


def _spaced(count: int | None, all_of_them: int) -> list[int]:
    """Numbers of prompts, evenly spaced."""
    count = min(count or all_of_them, all_of_them)
    return sorted({round(i * (all_of_them - 1) / max(1, count - 1)) for i in range(count)})


def _drawn(out: Path, settings: Settings, device: str, samples: int, prompts: int | None) -> Path:
    """The list of images of the benchmark that are drawn for --judges."""
    import torch

    from bestofn.evaluation.labelled_images import REMEDY, draw_labelled
    from bestofn.evaluation.tasks import benchmark, check_size
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.lora import Lora, listed
    from bestofn.models.sampling import default_size, load_generator

    checkpoint = Checkpoint.resolve(settings.model, any_pipeline=True)
    check_size(checkpoint.name, default_size(checkpoint), REMEDY)
    loras = [Lora.resolve(text) for text in listed(settings.lora)]
    generator = load_generator(settings.model, torch.device(device), loras=loras)
    with StepBar() as bar:
        return draw_labelled(
            *(out, generator, _spaced(prompts, len(benchmark())), samples),
            lambda done, wanted: bar.show("drawing", {"step": done, "steps": wanted}),
        )


def _make_folder(out: Path, option: str = "--out") -> None:
    """Raises SetupError now, not after hours of drawing, if the folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(bytes(TRIED_BYTES))  # a full disk may still take an empty file
    except OSError as error:
        raise SetupError(f"{out} cannot be written ({error.strerror}): name another folder with {option}") from error
