"""The files of a report: figures, table and plots."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


def write(
    folder: Path, name: str, figures: Mapping[str, Any], table: str, draw: Callable[[ModuleType], object]
) -> None:
    """Write `<name>.json`, `<name>.md` and, where matplotlib is installed, plots.

    Args:
        folder: where they go.
        name: of the files.
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
