"""Files of an evaluation: lines of text that people write, and reports."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of a file's lines that are not empty, in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    # Not splitlines(), which also cuts at characters that JSON strings may hold.
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


def write_report(
    folder: Path, name: str, figures: Mapping[str, Any], table: str, draw: Callable[[ModuleType], object]
) -> None:
    """Write `<name>.json`, `<name>.md` and, where matplotlib is installed, plots.

    Args:
        folder: where they go.
        name: the files' name.
        figures: everything that was measured.
        table: the figures as Markdown.
        draw: calls functions of `plots`, which it is given.
    """
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from bestofn.evaluation import plots

    draw(plots)
