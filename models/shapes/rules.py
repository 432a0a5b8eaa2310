"""GenEval's rules: whether the objects found in an image satisfy a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bestofn.models.shapes.prompts import PromptSpec

MARGIN = 0.1
"""GenEval's position threshold: the share of both objects' sizes that an offset must exceed."""


@dataclass(frozen=True)
class Found:
    """An object in an image, drawn or detected; box is left, top, right, bottom in pixels."""

    shape: str
    colour: str
    box: tuple[float, float, float, float]


def relations(a: Found, b: Found) -> frozenset[str]:
    """How a lies to b: one relation, two on a diagonal, none when they lie on each other (GenEval's rule)."""
    offset = [(a.box[k] + a.box[k + 2] - b.box[k] - b.box[k + 2]) / 2 for k in (0, 1)]
    spans = [(a.box[k + 2] - a.box[k] + b.box[k + 2] - b.box[k]) * MARGIN for k in (0, 1)]
    dx, dy = (math.copysign(max(abs(o) - s, 0.0), o) for o, s in zip(offset, spans, strict=True))
    norm = math.hypot(*offset)
    if dx == dy == 0 or norm == 0:
        return frozenset()
    dx, dy = dx / norm, dy / norm
    out = set()
    if abs(dx) > 0.5:
        out.add("left of" if dx < 0 else "right of")
    if abs(dy) > 0.5:
        out.add("above" if dy < 0 else "below")
    return frozenset(out)


def violation(found: Sequence[Found], spec: PromptSpec) -> str | None:
    """The first rule of the prompt that the objects break, in words; None if they satisfy it."""
    groups: list[list[Found]] = []
    for need in spec.include:
        kind = [f for f in found if f.shape == need.shape]
        if len(kind) < need.count:
            return f"expected {need.shape} >= {need.count}, found {len(kind)}"
        if need.colour:
            kind = [f for f in kind if f.colour == need.colour]
            if len(kind) < need.count:
                return f"expected {need.colour} {need.shape} >= {need.count}, found {len(kind)}"
        if need.position:
            relation, target = need.position
            kind = [f for f in kind if any(f is not g and relation in relations(f, g) for g in groups[target])]
            if len(kind) < need.count:
                return f"expected {need.shape} {relation} target, found none"
        groups.append(kind)
    for bar in spec.exclude:
        kind = [f for f in found if f.shape == bar.shape and bar.colour in (None, f.colour)]
        if len(kind) >= bar.count:
            return f"expected {bar.shape} < {bar.count}, found {len(kind)}"
    return None
