"""bestofn eval: how the score grows with N, measured on the shapes benchmark."""

import os
import platform
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bestofn.service.cli import target
from bestofn.service.cli.console import err
from bestofn.service.errors import SetupError
from bestofn.service.settings import load_settings

EPILOG = """Examples:

`bestofn eval --samples 32 --out docs/scaling`

`bestofn eval --samples 8 --prompts 24 --out /tmp/quick`
"""


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the pool and the report; what it holds already is kept.")],
    samples: Annotated[int, typer.Option(min=1, help="Candidates of each prompt: the largest N.")] = 32,
    prompts: Annotated[int, typer.Option(min=6, max=240, help="How many of the 240 prompts, evenly spaced.")] = 240,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the checkpoint's")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="One thread each.", show_default="all cores")] = None,
    model: Annotated[str | None, typer.Option(help="A generator of the shapes world.", show_default="shapes")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge of it.", show_default="shapes")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Keep the pictures here, to measure another judge without drawing them again.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Draw and judge the benchmark of the shapes world, and report score against N: judge, oracle, random judge.

    The score is the share of winners that the evaluator accepts, averaged over GenEval's six categories. A run that is
    cut off goes on where it was.
    """
    if not target.can_draw_here():
        raise SetupError("an evaluation needs the worker's packages: pip install 'bestofn[worker]'")
    import torch

    from bestofn.models.checkpoint import Checkpoint
    from bestofn.service.evaluation import pool, report
    from bestofn.service.load import find_judge

    settings = load_settings(model=model, judge=judge)
    checkpoint, judging = Checkpoint.resolve(settings.model), find_judge(settings.judge)
    source = pool.Source(
        str(checkpoint.path), checkpoint.revision, str(judging.path), judging.pin.revision, samples, steps
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("", total=None)
        try:
            rows = pool.fill(
                out / "pool.jsonl",
                source,
                prompts,
                processes or cores,
                lambda done, wanted: bar.update(task, completed=done, total=wanted),
                pictures,
            )
        except ValueError as error:
            raise SetupError(str(error)) from error
    machine = f"{platform.machine()}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"
    figures = report.summary(rows, source, machine)
    report.write(out, figures)
    typer.echo((out / "scaling.json").read_text() if json else report.table(figures), nl=False)


def add_to(program: typer.Typer) -> None:
    program.command("eval", epilog=EPILOG)(evaluate)
