"""Library of outlines: coverages of single objects that a generator drew, by shape and by quality."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from bestofn.models.shapes.evaluator import OVERLAP, Component
from bestofn.models.shapes.world import CANVAS, SHAPES, FloatArray, Mask, Thing

LEAST_OVERLAP, LEAST_PURITY, LARGEST_AREA = 0.45, 0.9, 1600
"""Limits of an outline: its overlap, its purity, and its area in pixels, above which two objects have merged."""

GREATEST_ZOOM = 1.4
"""Factor that an outline is enlarged or reduced by at most: its pixels are few."""


class Quality(Enum):
    """How well an outline fits its shape: range of the template overlap."""

    GOOD = (OVERLAP + 0.01, 1.01)
    NARROW = (OVERLAP + 0.005, OVERLAP + 0.05)
    NEAR = (OVERLAP - 0.06, OVERLAP)
    BAD = (LEAST_OVERLAP, OVERLAP - 0.06)


@dataclass(frozen=True, eq=False)
class Outline:
    """Coverage of one generated object.

    Attributes:
        shape: name of the shape that it fits best.
        overlap: template overlap with that shape.
        size: longer side of its box in pixels.
        alpha: (h, w) uint8, coverage times 255, with a rim of two pixels.
    """

    shape: str
    overlap: float
    size: int
    alpha: NDArray[np.uint8]

    def fitted(self, rng: np.random.Generator, thing: Thing) -> Mask:
        """The outline at the place and about the size of a thing, mirrored at random."""
        zoom = float(np.clip(thing.size / self.size, 1 / GREATEST_ZOOM, GREATEST_ZOOM))
        alpha = self.alpha[:, ::-1] if rng.random() < 0.5 else self.alpha
        height, width = alpha.shape
        return resized(alpha, zoom * height, zoom * width), *corner(thing, zoom * height, zoom * width)


class OutlineLibrary:
    """Outlines by shape and quality.

    Args:
        components: objects of generated images; those that touch the border, mix colours or are merged are left out.
    """

    def __init__(self, components: Iterable[Component]) -> None:
        self.outlines: dict[tuple[str, Quality], list[Outline]] = {(s, q): [] for s in SHAPES for q in Quality}
        for one in components:
            if (outline := _outline(one)) is not None:
                for quality in Quality:
                    low, high = quality.value
                    if low <= outline.overlap < high:
                        self.outlines[outline.shape, quality].append(outline)

    def pick(self, rng: np.random.Generator, shape: str, quality: Quality) -> Outline | None:
        """A random outline, or None where the library has none."""
        there = self.outlines[shape, quality]
        return there[int(rng.integers(len(there)))] if there else None


def _outline(one: Component) -> Outline | None:
    height, width = one.alpha.shape
    left, top = one.window
    inside = left > 0 and top > 0 and left + width < CANVAS and top + height < CANVAS
    if not inside or one.purity < LEAST_PURITY or one.overlap < LEAST_OVERLAP or one.mask.sum() > LARGEST_AREA:
        return None
    return Outline(one.shape, one.overlap, max(height, width) - 4, np.rint(one.alpha * 255).astype(np.uint8))


def resized(alpha: NDArray[np.uint8], height: float, width: float) -> FloatArray:
    """Coverage (h, w), 0 to 1, of an outline stretched to about `height` x `width` pixels, at least three."""
    size = max(3, round(width)), max(3, round(height))
    stretched = PillowImage.fromarray(np.ascontiguousarray(alpha)).resize(size, PillowImage.Resampling.BICUBIC)
    return np.asarray(np.asarray(stretched, np.float32) / np.float32(255))


def corner(thing: Thing, height: float, width: float) -> tuple[int, int]:
    """Top and left of a box of that size around the centre of a thing."""
    return round(thing.y - max(3, round(height)) / 2), round(thing.x - max(3, round(width)) / 2)
