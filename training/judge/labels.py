"""Labels of an image by the evaluator: objects, a description, and five label maps over the judge's cells.

K label maps: shape, colour, template overlap, and the column and row of the object's centre. Each is (h, w) = (8, 8)
class indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestofn.models.shapes.evaluator import Component, measure, well_formed
from bestofn.models.shapes.rules import Found
from bestofn.models.shapes.scenes import HELD_COLOUR_SHAPES
from bestofn.models.shapes.world import CANVAS, CELL, COLOURS, SHAPES, Image

MALFORMED = len(SHAPES) + 1
"""Shape label of an object that fits no template; 0 is background, 1 + index a shape."""

MIXED = len(COLOURS) + 1
"""Colour label of an object with several colours; 0 is background, 1 + index a colour."""

OVERLAP_EDGES = (0.65, 0.72, 0.75, 0.78, 0.83)
"""Limits of the overlap classes, close together around the evaluator's limit of 0.75; class 0 is background."""

PLACES = 16
"""Columns, and rows, of an object's centre, 4 pixels each: without them, cells know what an object is, not where."""

CLASSES = (MALFORMED + 1, MIXED + 1, len(OVERLAP_EDGES) + 2, PLACES + 1, PLACES + 1)
"""Number of classes of each label map."""

GRID = (len(CLASSES), CANVAS // CELL, CANVAS // CELL)
"""(K, h, w)."""

MALFORMED_WORD = "malformed"
LEAST_SHARE = 0.2
"""Share of a cell that an object must cover to label it."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and what the evaluator finds in it.

    Attributes:
        image: (64, 64, 3) uint8.
        found: well-formed objects from left to right.
        cells: (K, h, w) class indices.
        description: colour and shape of every object from left to right, with "malformed" for a mixed colour or a
            malformed shape. None without objects, or where an object has a held-out colour.
    """

    image: Image
    found: tuple[Found, ...]
    cells: NDArray[np.int64]
    description: str | None

    @classmethod
    def of(cls, image: Image) -> LabelledImage:
        """Label an image."""
        return cls.measured(image, measure(image))

    @classmethod
    def measured(cls, image: Image, components: Sequence[Component]) -> LabelledImage:
        """Label an image whose components are known."""
        return cls(image, well_formed(components), cell_labels(components), describe(components))


def cell_labels(components: Sequence[Component]) -> NDArray[np.int64]:
    """Label maps (K, h, w); a cell has the labels of the object that covers most of it."""
    side = CANVAS // CELL
    out = np.zeros(GRID, np.int64)
    best = np.full((side, side), LEAST_SHARE)
    for one in components:
        share = one.mask.reshape(side, CELL, side, CELL).mean((1, 3))
        more = share > best
        best = np.where(more, share, best)
        out[0][more] = 1 + SHAPES.index(one.shape) if one.well_shaped else MALFORMED
        out[1][more] = 1 + COLOURS.index(one.colour) if one.one_coloured else MIXED
        out[2][more] = 1 + np.searchsorted(OVERLAP_EDGES, one.overlap, side="right")
        left, top, right, bottom = one.box
        for place, centre in ((out[3], (left + right) / 2), (out[4], (top + bottom) / 2)):
            place[more] = 1 + min(PLACES - 1, int(centre * PLACES / CANVAS))
    return out


def describe(components: Sequence[Component]) -> str | None:
    """Two words an object, from left to right, or None; see `LabelledImage.description`."""
    named = [
        (c.colour if c.one_coloured else MALFORMED_WORD, c.shape if c.well_shaped else MALFORMED_WORD)
        for c in components
    ]
    if not named or not HELD_COLOUR_SHAPES.isdisjoint(named):
        return None
    return " ".join(f"{colour} {shape}" for colour, shape in named)
