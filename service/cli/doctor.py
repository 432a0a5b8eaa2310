"""bestofn doctor: what a bug report should say of this machine, queue and server, and what to change."""

import json as jsonlib
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from bestofn.service.cli.console import FAILURE, err, say
from bestofn.service.settings import load_settings

EPILOG = """Examples:

`bestofn doctor`

`bestofn doctor --json > report.json`

`bestofn doctor --model Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers` (would it fit this machine?)
"""


def doctor(
    redis_url: Annotated[str | None, typer.Option(help="The queue's server.", show_default="of `bestofn up`")] = None,
    model: Annotated[str | None, typer.Option(help="shapes, a folder, or a hub name with @revision.")] = None,
    judge: Annotated[str | None, typer.Option(help="As --model, for the judge.")] = None,
    devices: Annotated[str | None, typer.Option(help="all, cpu, or a list such as cuda:0,cuda:1.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, to paste into a report.")] = False,
) -> None:
    """Look at program, machine, devices, settings, queue, server, checkpoints, memory and disk, and say what to change.

    Nothing is started or downloaded, keys and passwords are left out. Exit status 1 if something cannot work.
    """
    from bestofn.service.doctor.checks import CHECKS
    from bestofn.service.doctor.report import examine

    settings = load_settings(redis_url=redis_url, model=model, judge=judge, devices=devices)
    with err.status("looking") if err.is_terminal else nullcontext():
        found = list(examine(settings, CHECKS))
    if json:
        typer.echo(jsonlib.dumps([{"check": check, **asdict(finding)} for check, finding in found], indent=2))
    else:
        for check, group in groupby(found, key=lambda pair: pair[0]):
            typer.echo(check)
            for _, finding in group:
                typer.echo(f"  {finding.state:4}  {finding.what:12} {finding.found}")
                if finding.fix:
                    typer.echo(f"  {'':4}  {'':12} -> {finding.fix}")
    failed = sum(finding.state == "fail" for _, finding in found)
    if failed:
        say(f"bestofn: {failed} of {len(found)} findings are failures")
        raise typer.Exit(FAILURE)


def add_to(program: typer.Typer) -> None:
    program.command(epilog=EPILOG)(doctor)
