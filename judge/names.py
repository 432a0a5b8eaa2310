"""Names of judges: a prefix says which code runs a judge, the rest says where its weights are. Without torch."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["vila", "vlm", "clip", "openai", "http", "mixture"]


PLUS = " + "
_WEIGHTED = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\*\s*(.*)")

ADDRESSES: tuple[Kind, ...] = ("openai", "http")
"""Kinds whose weights are on another machine, or in another process."""


class JudgeNameError(ValueError):
    """A name of a judge or a mixture that has not the form of one; the message has the part and the form."""


@dataclass(frozen=True, slots=True)
class JudgeName:
    """A judge's name in its two parts.

    Attributes:
        kind: `vila` (NVILA, the default), `vlm`, `clip`, `openai`, `http`, or a `mixture` of such.
        place: shapes, a folder or a hub name with or without @revision; an address; the names of a mixture.
    """

    kind: Kind
    place: str

    @property
    def local(self) -> bool:
        """Whether the weights are read on this machine."""
        return self.kind in ("vila", "vlm", "clip")

    @property
    def full(self) -> str:
        """The name that `parse_name` splits into these parts."""
        return self.place if self.kind in ("vila", "http", "mixture") else f"{self.kind}:{self.place}"


def parse_name(name: str) -> JudgeName:
    """Split a judge's name; one without a known prefix is NVILA's."""
    if PLUS in name:
        return JudgeName("mixture", name)
    if name.startswith(("http://", "https://")):
        return JudgeName("http", name)
    kinds: tuple[Kind, ...] = ("vila", "vlm", "clip", "openai")
    for kind in kinds:
        if name.startswith(f"{kind}:"):
            return JudgeName(kind, name.removeprefix(f"{kind}:"))
    return JudgeName("vila", name)


def vlm_name(name: str) -> str:
    """The name of another model of transformers, such as an image checker, where those of judges are read."""
    return f"vlm:{name.removeprefix('vlm:')}"


def members(name: str) -> list[tuple[float, str]]:
    """Weights and names of the judges in a name such as `A + 0.5*B`; 1 where no weight is given.

    Raises:
        JudgeNameError: a part has no name, or a weight that is no number above 0, or the only judge has a weight.
    """
    parts = [part.strip() for part in f" {name} ".split(PLUS)]
    found = [_weighted(name, part) for part in parts]
    if len(parts) == 1 and found[0][1] != parts[0]:
        raise JudgeNameError(f"judge {name!r}: a single judge has no weight: leave out {parts[0].partition('*')[0]}*")
    return found


def mixture_name(parts: Iterable[tuple[float, str]]) -> str:
    """The name that `members` splits into these weights and names."""
    return PLUS.join(f"{repr(weight).removesuffix('.0')}*{one}" for weight, one in parts)


def _weighted(name: str, part: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(part)
    number, one = ("1", part) if match is None else match.groups()
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not (one and 0 < weight < math.inf):
        raise JudgeNameError(
            f"judge {name!r}: {part!r} is not a part of a mixture: write A + 0.5*B, with weights above 0"
        )
    return weight, one
