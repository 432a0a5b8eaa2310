"""bestofn worker: one engine a device, fed from the queue."""

import sys
from typing import Annotated

import typer

from bestofn.service.cli import target
from bestofn.service.errors import SetupError
from bestofn.service.settings import load_settings

EPILOG = """Examples:

`bestofn worker --redis-url redis://queue:6379 --devices all`

`bestofn worker --model Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers --devices cuda:0`
"""


def worker(
    devices: Annotated[
        str | None, typer.Option(help="all, cpu, or a list such as cuda:0,cuda:1.", show_default="all")
    ] = None,
    model: Annotated[str | None, typer.Option(help="shapes, a folder, or a hub name with @revision.")] = None,
    judge: Annotated[str | None, typer.Option(help="As --model, for the judge.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="The queue's server.", show_default="of `bestofn up`")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Candidates drawn together.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if left out.")] = None,
) -> None:
    """Draw and judge what stands in the queue, until SIGTERM or Ctrl-C. With several devices, one process each."""
    settings = load_settings(
        devices=devices, model=model, judge=judge, redis_url=redis_url, slots=slots, threads=threads
    )
    if not target.can_draw_here():
        raise SetupError("a worker needs its packages: pip install 'bestofn[worker]'")

    from bestofn.service.load import devices as found
    from bestofn.service.load import load_engine

    names = found(settings)
    if len(names) == 1:
        from bestofn.service.worker import run_worker

        raise typer.Exit(run_worker(settings, lambda: load_engine(settings)))

    from bestofn.service.supervisor import supervise

    flags = {"--model": model, "--judge": judge, "--redis-url": redis_url, "--slots": slots, "--threads": threads}
    given = [part for flag, value in flags.items() if value is not None for part in (flag, str(value))]
    program = [sys.executable, "-P", "-m", "bestofn.service.cli", "worker"]
    raise typer.Exit(supervise([[*program, "--devices", name, *given] for name in names]))


def add_to(program: typer.Typer) -> None:
    program.command(epilog=EPILOG)(worker)
