"""Images composed from single objects whose outline and colour may be flawed, for a judge to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bestofn.models.shapes.questions import drawn_object, malformed, random_scene, softened
from bestofn.models.shapes.rules import Found
from bestofn.models.shapes.world import (
    CANVAS,
    PALETTE,
    SHAPES,
    FloatArray,
    Image,
    Mask,
    Thing,
    background,
    coverage,
)
from bestofn.training.judge.outlines import OutlineLibrary, Quality, corner, resized

NEIGHBOURS = {
    "red": ("orange", "brown", "pink", "purple"),
    "orange": ("yellow", "red", "brown"),
    "yellow": ("orange", "white", "green"),
    "green": ("black", "blue", "yellow"),
    "blue": ("purple", "black", "green"),
    "purple": ("blue", "pink", "black"),
    "pink": ("white", "red", "purple"),
    "brown": ("black", "red", "orange"),
    "black": ("brown", "blue", "purple", "green"),
    "white": ("pink", "yellow"),
}
"""Colours that a generator runs into each other."""


@dataclass(frozen=True)
class ColourMix:
    """A gradient to a second colour across an object.

    Attributes:
        colour: name of the second colour.
        angle: direction of the gradient in radians.
        slope: change of the mix over the size of the object.
        offset: mix at the centre of the object, 0 to 1.
        strength: greatest mix, 0 to 1.
    """

    colour: str
    angle: float
    slope: float
    offset: float
    strength: float

    @classmethod
    def random(cls, rng: np.random.Generator, colour: str) -> ColourMix:
        """A mix with a neighbour of a colour that reaches a fifth to all of the object."""
        second = NEIGHBOURS[colour][int(rng.integers(len(NEIGHBOURS[colour])))]
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 4)
        return cls(second, float(angle), float(slope), float(rng.uniform(0.1, 0.65)), float(rng.uniform(0.5, 1)))


@dataclass(frozen=True, eq=False)
class PaintedObject:
    """One object of a composed image.

    Attributes:
        thing: shape, colour, centre and size.
        mask: its coverage with top and left.
        tint: (3,) offset of its colour, in units of one channel.
        mix: its second colour; None for one colour.
    """

    thing: Thing
    mask: Mask
    tint: FloatArray
    mix: ColourMix | None = None


def random_tint(rng: np.random.Generator) -> FloatArray:
    """A random `PaintedObject.tint`."""
    return rng.uniform(-6, 6, 3).astype(np.float32)


def compose(canvas: FloatArray, objects: Sequence[PaintedObject]) -> Image:
    """Paint objects over a background (64, 64, 3) in their order, cut off at its border."""
    out = canvas.copy()
    for one in objects:
        alpha, top, left = one.mask
        y0, x0 = max(0, top), max(0, left)
        y1, x1 = min(CANVAS, top + alpha.shape[0]), min(CANVAS, left + alpha.shape[1])
        if y1 - y0 < 3 or x1 - x0 < 3:
            continue
        cover = np.clip(alpha[y0 - top : y1 - top, x0 - left : x1 - left], 0, 1)[..., None]
        y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        patch = out[y0:y1, x0:x1]
        patch += cover * (_paint(one, x, y) - patch)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _paint(one: PaintedObject, x: FloatArray, y: FloatArray) -> FloatArray:
    """Colour of an object at pixels x, y (h, w).  # (h, w, 3)"""
    thing = one.thing
    light = 1 + 0.05 * (thing.y - y) / thing.size
    paint = (np.array(PALETTE[thing.colour], np.float32) + one.tint) * light[..., None]
    if one.mix is not None:
        along = np.cos(one.mix.angle) * (x - thing.x) + np.sin(one.mix.angle) * (y - thing.y)
        share = np.clip(along / thing.size * one.mix.slope + one.mix.offset, 0, 1) * one.mix.strength
        paint = paint + share[..., None] * (np.array(PALETTE[one.mix.colour], np.float32) - paint)
    return np.asarray(paint, np.float32)


def stretched(rng: np.random.Generator, thing: Thing, mask: Mask) -> Mask:
    """The mask at the same area but another aspect: 1.3 to 1.65 times too wide or too high."""
    factor = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)))
    height, width = mask[0].shape
    height, width = height * factor**0.5, width / factor**0.5
    alpha = np.rint(np.clip(mask[0], 0, 1) * 255).astype(np.uint8)
    return resized(alpha, height, width), *corner(thing, height, width)


def blended(rng: np.random.Generator, thing: Thing) -> Mask:
    """The thing's coverage with a quarter to two thirds of another shape's: outlines near the evaluator's limit."""
    alpha, top, left = coverage(thing)
    share = rng.uniform(0.25, 0.65)
    return np.asarray((1 - share) * alpha + share * coverage(reshaped(rng, thing))[0], np.float32), top, left


def outline(rng: np.random.Generator, thing: Thing, library: OutlineLibrary | None, quality: Quality) -> Mask | None:
    """A generated outline of that quality in place of the thing; None where there is none."""
    picked = library.pick(rng, thing.shape, quality) if library else None
    return picked.fitted(rng, thing) if picked else None


def composed_scene(
    rng: np.random.Generator, library: OutlineLibrary | None, flawed_share: float = 0.5
) -> tuple[Image, tuple[Found, ...]]:
    """A random scene without held-out combinations, and what it was meant to show.

    Args:
        rng: source of everything.
        library: generated outlines; None for drawn shapes alone.
        flawed_share: share of the scenes that have flawed objects.
    """
    things = list(random_scene(rng).things)
    if len(things) > 1 and rng.random() < 0.1:
        a, b = things[:2]
        share = float(rng.uniform(0.3, 0.75))
        things[1] = replace(b, x=b.x + (a.x - b.x) * share, y=b.y + (a.y - b.y) * share)
    canvas, flawed = background(rng), bool(rng.random() < flawed_share)
    objects = []
    for thing in things:
        mask = _mask(rng, thing, library, flawed)
        mixed = rng.random() < (0.16 if flawed else 0.03)
        objects.append(
            PaintedObject(thing, mask, random_tint(rng), ColourMix.random(rng, thing.colour) if mixed else None)
        )
    image = compose(canvas, objects)
    return softened(rng, image) if rng.random() < 0.4 else image, tuple(drawn_object(thing) for thing in things)


def _mask(rng: np.random.Generator, thing: Thing, library: OutlineLibrary | None, flawed: bool) -> Mask:
    draw = rng.random()
    if flawed and draw < 0.12:
        return malformed(rng, thing)
    if flawed and draw < 0.24:
        return blended(rng, thing)
    if draw < 0.85:
        qualities = [Quality.GOOD, Quality.NARROW, Quality.NEAR, Quality.BAD]
        shares = [0.3, 0.2, 0.3, 0.2] if flawed else [0.7, 0.2, 0.07, 0.03]
        mask = outline(rng, thing, library, qualities[int(rng.choice(4, p=shares))]) or coverage(thing)
    else:
        mask = coverage(thing)
    return stretched(rng, thing, mask) if flawed and rng.random() < 0.15 else mask


def reshaped(rng: np.random.Generator, thing: Thing) -> Thing:
    """The thing with another shape."""
    others = [shape for shape in SHAPES if shape != thing.shape]
    return replace(thing, shape=others[int(rng.integers(len(others)))])
