"""Figures: what was promised, what was wanted of it and what was measured, as a table and as JSON."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `kept` is None for what is told only, and promised by nobody."""

    section: str
    promise: str
    wanted: str
    measured: str
    kept: bool | None


def exactly(section: str, promise: str, wanted: int, measured: int) -> Figure:
    """A count that has one right value."""
    return Figure(section, promise, str(wanted), str(measured), measured == wanted)


def at_most(section: str, promise: str, wanted: float, measured: float, unit: str) -> Figure:
    """A measure that must not pass its bound."""
    return Figure(section, promise, f"at most {wanted:g} {unit}", f"{measured:.3g} {unit}", measured <= wanted)


def told(section: str, what: str, measured: str) -> Figure:
    """Something that a reader of the others wants to know."""
    return Figure(section, what, "", measured, None)


def percentile(values: Iterable[float], part: float) -> float:
    """The smallest of the values that at least `part` (0 to 1) of them do not pass; NaN of none."""
    order = sorted(values)
    return order[max(0, math.ceil(part * len(order)) - 1)] if order else math.nan


def table(figures: Sequence[Figure]) -> str:
    """Markdown, aligned so that it can be read in a terminal too."""
    rows = [("section", "promise", "wanted", "measured", "")]
    rows += [(f.section, f.promise, f.wanted, f.measured, _WORDS[f.kept]) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


_WORDS = {True: "kept", False: "BROKEN", None: ""}


def write(figures: Sequence[Figure], seconds: Mapping[str, float], folder: Path) -> None:
    """Write chaos.json and the end of README.md in the folder; sections that did not run keep their figures."""
    folder.mkdir(parents=True, exist_ok=True)
    file, page = folder / "chaos.json", folder / "README.md"
    sections = json.loads(file.read_text())["sections"] if file.is_file() else {}
    for name in seconds:
        own = [{k: v for k, v in asdict(f).items() if k != "section"} for f in figures if f.section == name]
        sections[name] = {"seconds": round(seconds[name]), "machine": machine(), "figures": own}
    file.write_text(json.dumps({"sections": sections}, indent=1) + "\n")
    if page.is_file():
        every = [Figure(section=name, **figure) for name, told in sections.items() for figure in told["figures"]]
        machines = "\n".join(f"Measured on {m}." for m in dict.fromkeys(told["machine"] for told in sections.values()))
        head, mark, _ = page.read_text().partition("## Measured\n")
        page.write_text(f"{head}{mark}\n{table(every)}\n\n{machines}\n")


def machine() -> str:
    """The machine, and the versions that matter."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, commit {commit.strip() or 'unknown'}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()
