"""bestofn eval: what strategies of spending compute bring, measured on the shapes benchmark."""

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

EPILOG = """A strategy is a line such as `n=32`, `n=16 steps=24`, `n=16 draft=4:0.125` (steps:keep) or `n=64 stop=0.97`.

Examples:

`bestofn eval --samples 32 --out docs/scaling`

`bestofn eval --strategies docs/scaling/strategies.txt --replay --out docs/scaling`

`bestofn eval --samples 8 --prompts 24 --strategy 'n=8' --strategy 'n=8 steps=24' --out /tmp/quick`
"""


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the pool and the report; what it holds already is kept.")],
    samples: Annotated[int, typer.Option(min=1, help="Candidates of each prompt: the largest N of the curve.")] = 32,
    prompts: Annotated[int, typer.Option(min=6, max=240, help="How many of the 240 prompts, evenly spaced.")] = 240,
    strategy: Annotated[list[str] | None, typer.Option(help="To compare; may be given more than once.")] = None,
    strategies: Annotated[Path | None, typer.Option(help="A file of strategies, one a line.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Draw nothing: report what the pool holds.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="One thread each.", show_default="all cores")] = None,
    model: Annotated[str | None, typer.Option(help="A generator of the shapes world.", show_default="shapes")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge of it.", show_default="shapes")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Draw and judge the benchmark of the shapes world once, and replay every strategy from that pool.

    The score is the share of winners that the evaluator accepts, averaged over GenEval's six categories. A run that is
    cut off goes on where it was, and one with more samples or other strategies draws only what is lacking.
    """
    if not target.can_draw_here():
        raise SetupError("an evaluation needs the worker's packages: pip install 'bestofn[worker]'")
    import torch

    from bestofn.judge.judge import Judge
    from bestofn.models.checkpoint import Checkpoint
    from bestofn.models.generator import Generator
    from bestofn.service.evaluation import cost, report
    from bestofn.service.evaluation.pool import CHUNK, Pool, Source, Want, Way
    from bestofn.service.evaluation.strategies import Strategy, parse_all
    from bestofn.service.evaluation.tasks import benchmark
    from bestofn.service.load import find_judge

    settings = load_settings(model=model, judge=judge)
    checkpoint, judging = Checkpoint.resolve(settings.model), find_judge(settings.judge)
    tasks = benchmark()
    numbers = sorted({round(i * (len(tasks) - 1) / (prompts - 1)) for i in range(prompts)})
    try:
        lines = [*(strategies.read_text(encoding="utf-8").splitlines() if strategies else []), *(strategy or [])]
        compared = parse_all(lines) or [Strategy(2**i) for i in range(samples.bit_length())]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    generator, verifier = Generator.load(str(checkpoint.path)), Judge.load(judging.path)
    steps = generator.defaults.num_inference_steps
    try:
        pool = Pool(
            out / "pool.jsonl",
            Source(str(checkpoint.path), checkpoint.revision, str(judging.path), judging.pin.revision, tasks),
        )
    except ValueError as error:
        raise SetupError(str(error)) from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not replay:
        wants = [Want(Way(steps), samples, numbers)]
        wants += [Want(way, one.num_samples, numbers) for one in compared for way in one.ways(steps)]
        columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err) as bar:
            task = bar.add_task("", total=None)
            pool.fill(
                wants,
                processes or cores,
                lambda done, wanted: bar.update(task, completed=CHUNK * done, total=CHUNK * wanted),
            )
    if not pool.depth(Way(steps), numbers):
        raise SetupError(f"{pool.path} has no candidates of all these prompts: run without --replay")
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"
    prices = {
        "tflops": cost.counted(generator, verifier),
        "seconds": cost.timed(generator, verifier, tasks[numbers[0]].prompt),
    }
    figures = report.summary(pool, report.Question(numbers, compared, steps, prices, machine))
    report.write(out, figures)
    typer.echo((out / "scaling.json").read_text() if json else report.tables(figures), nl=False)


def add_to(program: typer.Typer) -> None:
    program.command("eval", epilog=EPILOG)(evaluate)
