"""Write the table of settings into docs/reference/settings.md, from the Settings class."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from bestofn.service.core.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- written by .ci/settings_page.py -->\n", "<!-- until here -->\n"
UNITS = {  # by the end of a name; the rest are words, numbers or switches
    "_seconds": "s",
    "_bytes": "bytes",
    "_tflops": "TFLOP",
    "_candidates": "candidates",
    "_candidates_per_key": "candidates",
    "max_samples": "candidates",
    "max_size": "pixels",
    "max_open_calls_per_key": "calls",
    "max_connections": "connections",
}


def groups() -> Iterator[tuple[str, list[str]]]:
    """The comments that head the fields of the class, each with the names below it."""
    source = inspect.getsource(Settings)
    for part in re.split(r"^    # ", source, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        yield title, re.findall(r"^    (\w+): ", body, flags=re.MULTILINE)


def variables(name: str, field: FieldInfo) -> list[str]:
    """The environment's names of a field."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [f"BESTOFN_{name.upper()}"]


def default(field: FieldInfo) -> str:
    """A default as it would be written into the environment; "" for none."""
    value = field.default
    if value is None:
        return ""
    if isinstance(value, Path):
        return f"`~/{value.relative_to(Path.home())}`"
    if isinstance(value, (bool, tuple)):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def table() -> str:
    """The whole table."""
    rows = ["| setting | default | |\n|---|---|---|\n"]
    for title, names in groups():
        rows.append(f"| **{title}** | | |\n")
        for name in names:
            field = Settings.model_fields[name]
            unit = next((f" {unit}" for end, unit in UNITS.items() if name.endswith(end)), "") if field.default else ""
            named = ", ".join(f"`{variable}`" for variable in variables(name, field))
            rows.append(f"| {named} | {default(field)}{unit} | {(field.description or '').replace('|', '/')} |\n")
    return "".join(rows)


def page(text: str) -> str:
    """The page with the table of today in its place."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
