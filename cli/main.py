"""The program `bestofn`."""

import os
from typing import Annotated

import typer

from bestofn.cli import console
from bestofn.cli.commands import (
    calibrate,
    certificate,
    doctor,
    eval,
    generate,
    inspect,
    keys,
    models,
    rank,
    serve,
    train,
    up,
    worker,
)

program = typer.Typer(
    name="bestofn",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import bestofn

        typer.echo(bestofn.__version__)
        raise typer.Exit


@program.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Best of N: draw N images of a prompt, let a judge compare them, keep the best.

    Settings come from flags, from BESTOFN_* variables and from files in /run/secrets.
    """


program.command(epilog=generate.EPILOG)(generate.generate)
program.command(epilog=rank.EPILOG)(rank.rank)
program.command(epilog=inspect.EPILOG)(inspect.inspect)
program.command("eval", epilog=eval.EPILOG)(eval.evaluate)
program.command(epilog=calibrate.EPILOG)(calibrate.calibrate)
program.command(epilog=up.EPILOG)(up.up)
program.command(epilog=serve.EPILOG)(serve.serve)
program.command(epilog=worker.EPILOG)(worker.worker)
program.command(epilog=doctor.EPILOG)(doctor.doctor)
program.command(epilog="Example: `bestofn certificate ./c2pa`")(certificate.certificate)
program.add_typer(keys.program, name="keys")
program.add_typer(models.program, name="models")
program.add_typer(train.program, name="train")


def app() -> None:
    """Entry point of the console script."""
    # Read when torch loads. A thread that spins while it waits for another costs nothing on an idle machine and
    # everything on a busy one: 8 candidates on two cores under load took 78 s with it and 7 s without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console.run(program)
