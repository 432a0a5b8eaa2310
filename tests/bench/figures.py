"""Figures: what was measured and what is wanted, as JSON of each section and as one page of tables."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from bestofn.service.core.errors import SetupError
from bestofn.service.host.cgroups import cores
from bestofn.service.queue.embedded_server import server_binary

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "diffusers", "transformers", "redis", "uvicorn")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of which something is wanted: at least so much, or at most."""

    what: str
    measured: float
    unit: str
    wanted: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass(frozen=True, slots=True)
class Table:
    """Everything else that was measured; cells are numbers or words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a section comes to. `notes` are sentences on how to read it."""

    tables: Sequence[Table]
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = field(default=())


def at_least(what: str, measured: float, wanted: float, unit: str = "") -> Figure:
    return Figure(what, measured, unit, wanted, True)


def at_most(what: str, measured: float, wanted: float, unit: str = "") -> Figure:
    return Figure(what, measured, unit, wanted, False)


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest of the values that at least `part` (0 to 1) of them do not pass; NaN of none."""
    order = sorted(values)
    return order[max(0, math.ceil(part * len(order)) - 1)] if order else math.nan


def number(value: str | float) -> str:
    """A cell: whole numbers and those from a hundred on without decimals, others with three digits."""
    if isinstance(value, str):
        return value
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(table: Table) -> str:
    """The table, aligned so that it can be read in a terminal too."""
    cells = [list(table.header), *([number(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def shown(measured: Measured) -> str:
    """A section's tables, what was wanted of it, and its notes."""
    parts = [markdown(table) for table in measured.tables]
    if measured.figures:
        rows = [
            (
                figure.what,
                f"{number(figure.measured)} {figure.unit}".strip(),
                f"{'at least' if figure.at_least else 'at most'} {number(figure.wanted)} {figure.unit}".strip(),
                "met" if figure.met else "**missed**",
            )
            for figure in measured.figures
        ]
        parts.append(markdown(Table(("", "measured", "wanted", ""), rows)))
    return "\n\n".join([*parts, *measured.notes])


def save(folder: Path, section: str, caption: str, measured: Measured, seconds: float, on: str) -> None:
    """Writes a section's JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"caption": caption, "machine": on, "seconds": round(seconds)} | asdict(measured)
    (folder / f"{section}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


HEAD = (
    '# Benchmarks\n\nWritten by `make bench` (some sections: `make bench SECTIONS="queue scaling"`). Ratios are of '
    "medians of one run in alternating order. What is wanted was written down before it was measured."
)


def write_page(folder: Path, sections: Iterable[str], head: str = HEAD) -> None:
    """Writes README.md from the JSON of those sections that there is, each run at its own time."""
    parts = [head]
    for section in sections:
        file = folder / f"{section}.json"
        if file.is_file():
            told = json.loads(file.read_text(encoding="utf-8"))
            body = shown(_read(told))
            parts.append(f"## {section}\n\n{told['caption']}\n\n{body}\n\n{told['seconds']} s on {told['machine']}.")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _read(told: dict[str, Any]) -> Measured:
    return Measured(
        [Table(**table) for table in told["tables"]],
        [Figure(**figure) for figure in told["figures"]],
        told["notes"],
    )


def machine() -> str:
    """The machine and the versions that matter."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    versions = ", ".join([f"Python {platform.python_version()}", *found, _queue_server()])
    return f"{_processor()}, {cores()} cores, {platform.system()}, {versions}, commit {git.stdout.strip() or 'unknown'}"


class Company:
    """How much of the machine other programs take, from the making of this on."""

    def __init__(self) -> None:
        self._begun, self._before = time.monotonic(), self._others()

    def share(self) -> float:
        """Of all cores, 0 to 1. Processes that were started and have ended are this program."""
        seconds = time.monotonic() - self._begun
        return max(0.0, (self._others() - self._before) / (seconds * (os.cpu_count() or 1)))

    def _others(self) -> float:
        busy = psutil.cpu_times()
        return float(busy.user + busy.nice + busy.system) - sum(os.times()[:4])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def _queue_server() -> str:
    try:
        told = subprocess.run([server_binary(), "--version"], capture_output=True, text=True).stdout.split()
    except SetupError:
        return "no queue server"
    return f"{told[0]} {next((word[2:] for word in told if word.startswith('v=')), '')}"
