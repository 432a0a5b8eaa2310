"""bestofn doctor: what a bug report should say of this machine, queue and server, and what to change."""

import json as jsonlib
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from bestofn.cli import options
from bestofn.cli.console import FAILURE, err, say
from bestofn.service.core.settings import load_settings

if TYPE_CHECKING:
    from bestofn.service.doctor.findings import Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
INDENT = 21  # columns before what was found
NARROW, NARROW_INDENT = 60, 8  # a terminal of fewer columns has what was found on a line of its own
EPILOG = """Examples:

`bestofn doctor`

`bestofn doctor --json > report.json`

`bestofn doctor --model Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers` (would it fit this machine?)
"""


def doctor(
    redis_url: options.RedisUrl = None,
    model: options.Model = None,
    judge: options.Judge = None,
    second_judge: options.SecondJudge = None,
    devices: options.Devices = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, to paste into a report.")] = False,
) -> None:
    """Look at program, machine, devices, settings, queue, server, checkpoints, memory and disk, and say what to change.

    Nothing is started or downloaded, keys and passwords are left out. Exit status 1 if something cannot work.
    """
    from bestofn.service.doctor.findings import examine
    from bestofn.service.doctor.registry import CHECKS

    settings = load_settings(redis_url=redis_url, model=model, judge=judge, second_judge=second_judge, devices=devices)
    with err.status("looking") if err.is_terminal else nullcontext():
        found = list(examine(settings, CHECKS))
    if json:
        typer.echo(jsonlib.dumps([{"check": check, **asdict(finding)} for check, finding in found], indent=2))
    else:
        for check, group in groupby(found, key=lambda pair: pair[0]):
            typer.secho(check, bold=True)
            for _, finding in group:
                for line in finding_lines(finding, width=err.width if sys.stdout.isatty() else None):
                    typer.echo(line)
    exit_on_failures([finding for _, finding in found])


def exit_on_failures(found: "Sequence[Finding]") -> None:
    """End with status 1 if some of these findings are failures."""
    failed = sum(finding.state == "fail" for finding in found)
    if failed:
        say(f"bestofn: {failed} of {len(found)} findings are failures")
        raise typer.Exit(FAILURE)


def finding_lines(finding: "Finding", width: int | None) -> list[str]:
    """A finding as it is printed, broken at `width` columns if that is given."""
    state = typer.style(f"{finding.state:4}", fg=None if err.no_color else COLOURS[finding.state])
    narrow = width is not None and width < NARROW
    indent = NARROW_INDENT if narrow else INDENT
    lines = [f"  {state}  {finding.what}\n{'':{indent}}" if narrow else f"  {state}  {finding.what:12} "]
    lines += [f"{'':{indent - 1}} -> "] if finding.fix else []
    for i, text in enumerate((finding.found, finding.fix)[: len(lines)]):
        rows = [text] if width is None else textwrap.wrap(text, max(1, width - indent - 3 * i), break_on_hyphens=False)
        lines[i] += f"\n{'':{indent + 3 * i}}".join(rows)
    return lines
