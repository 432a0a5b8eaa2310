"""Names of judges: a prefix says which code runs a judge, the rest says where its weights are. Without torch."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vila", "vlm", "clip", "openai", "http"]


ADDRESSES: tuple[Kind, ...] = ("openai", "http")
"""Kinds whose weights are on another machine, or in another process."""


@dataclass(frozen=True, slots=True)
class JudgeName:
    """A judge's name in its two parts.

    Attributes:
        kind: `vila` (NVILA, the default), `vlm`, `clip`, `openai` or `http`.
        place: shapes, a folder or a hub name with or without @revision; of `openai` and `http` an address.
    """

    kind: Kind
    place: str

    @property
    def local(self) -> bool:
        """Whether the weights are read on this machine."""
        return self.kind not in ADDRESSES

    @property
    def full(self) -> str:
        """The name that `parse_name` splits into these parts."""
        return self.place if self.kind in ("vila", "http") else f"{self.kind}:{self.place}"


def parse_name(name: str) -> JudgeName:
    """Split a judge's name; one without a known prefix is NVILA's."""
    if name.startswith(("http://", "https://")):
        return JudgeName("http", name)
    kinds: tuple[Kind, ...] = ("vila", "vlm", "clip", "openai")
    for kind in kinds:
        if name.startswith(f"{kind}:"):
            return JudgeName(kind, name.removeprefix(f"{kind}:"))
    return JudgeName("vila", name)
