"""Errors of pydantic in plain words: the field, its limit and the value."""

import re
from collections.abc import Mapping
from typing import Any

QUOTED = 40  # characters of a value


def explain(entry: Mapping[str, Any], field: str, *, quote: bool = True) -> str:
    """One entry of `ValidationError.errors()`, such as "num_samples must be at least 1, got 0".

    Args:
        entry: the entry, with its input.
        field: name of the field.
        quote: whether the value is shown, escaped and cut; not so of a secret.
    """
    message, known = re.subn(r"^\w+ should ", "must ", entry["msg"].removeprefix("Value error, "))
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    text = f"{field} {message}" if known else f"{field}: {message[:1].lower()}{message[1:]}"
    value = entry.get("input")
    if not known or not quote or not isinstance(value, bool | int | float | str):
        return text
    if isinstance(value, bool):
        return f"{text}, got {str(value).lower()}"  # as JSON has it
    shown = f"{len(value)} characters" if isinstance(value, str) and len(value) > QUOTED else ascii(value)[:QUOTED]
    return f"{text}, got {shown}"
