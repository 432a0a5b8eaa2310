"""Names of judges: a prefix says which code runs a judge, the rest says where its weights are. Without torch."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["vila", "vlm", "clip", "openai", "http", "mixture"]


PLUS = " + "
_WEIGHTED = re.compile(r"(?:(\d+(?:\.\d+)?)\*)?(.+)")

ADDRESSES: tuple[Kind, ...] = ("openai", "http")
"""Kinds whose weights are on another machine, or in another process."""


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
    """Weights and names of the judges in a name such as `A + 0.5*B`; 1 where no weight is given."""
    found = (_WEIGHTED.fullmatch(part.strip()) for part in name.split(PLUS))
    return [(float(match[1] or 1), match[2]) for match in found if match is not None]
