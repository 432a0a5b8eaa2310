"""The drawn world: scenes of simple coloured objects on a soft background, rendered without torch.

Axes: H height, W width of an image in pixels; y runs down, x to the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

CANVAS = 64
"""Side of a scene in pixels; plain `SanaPipeline` accepts multiples of 32 only."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 20),
    "green": (20, 150, 50),
    "blue": (20, 70, 230),
    "purple": (130, 30, 170),
    "pink": (255, 135, 190),
    "brown": (115, 60, 20),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
}
COLOURS = tuple(PALETTE)

MAX_TILT = 0.14
"""Greatest rotation of an object in radians: small enough that a square never reads as a diamond."""

SIZES = {1: (24.0, 36.0), 2: (19.0, 26.0), 3: (17.0, 22.0), 4: (16.0, 21.0)}
"""Range of object sizes in pixels, by the number of objects in the scene."""

FloatArray = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = tuple[FloatArray, int, int]
"""Coverage of an object on its box, and the box's top and left."""


@dataclass(frozen=True)
class Thing:
    """One drawn object: its words, centre and size in pixels, tilt in radians."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    tilt: float = 0.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels, of the square that the shape is inscribed in."""
        half = self.size / 2
        return (self.x - half, self.y - half, self.x + half, self.y + half)


@dataclass(frozen=True)
class Scene:
    """What is drawn: the objects, and the seed of everything decorative (background, shading)."""

    things: tuple[Thing, ...]
    seed: int


def outlines() -> dict[str, tuple[FloatArray, ...]]:
    """Closed polygons of every shape in the square [-1, 1] x [-1, 1], y down; inside is inside an odd number."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    unit = np.stack([np.sin(turn), -np.cos(turn)], 1)
    corner = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.04, 0.46)
    star = np.stack([np.sin(corner) * reach, 0.06 - np.cos(corner) * reach], 1)
    heart_x = 16 * np.sin(turn) ** 3 / 17
    heart_y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 15.5 - 0.14
    arm, end = 0.32, 0.96
    cross = [(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)]
    cross += [(-x, -y) for x, y in cross]
    polygons: dict[str, tuple[object, ...]] = {
        "circle": (0.96 * unit,),
        "square": ([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],),
        "triangle": ([(0, -0.92), (0.98, 0.84), (-0.98, 0.84)],),
        "star": (star,),
        "heart": (np.stack([heart_x, heart_y], 1),),
        "ring": (0.97 * unit, 0.52 * unit),
        "cross": (cross,),
        "diamond": ([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],),
    }
    return {name: tuple(np.asarray(p, np.float32) for p in parts) for name, parts in polygons.items()}


FIELD = 96
REACH = 1.6


@cache
def _distance_field(shape: str) -> FloatArray:
    """Signed distance to the outline on a FIELD x FIELD grid over [-REACH, REACH]^2, negative inside.  # (H, W)"""
    axis = np.linspace(-REACH, REACH, FIELD, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    nearest = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for polygon in outlines()[shape]:
        for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
            crosses = (ay > y) != (by > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (x < ax + (y - ay) / ey * ex)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def coverage(thing: Thing) -> Mask:
    """How much of each pixel the object covers, 0 to 1, on its own box, with the box's top and left.  # (H, W)"""
    half = thing.size / 2
    pad = half * 1.25 + 1
    left, top = max(0, int(thing.x - pad)), max(0, int(thing.y - pad))
    right, bottom = min(CANVAS, int(thing.x + pad) + 2), min(CANVAS, int(thing.y + pad) + 2)
    px = (np.arange(left, right, dtype=np.float32) + 0.5 - thing.x)[None, :] / half
    py = (np.arange(top, bottom, dtype=np.float32) + 0.5 - thing.y)[:, None] / half
    cos, sin = float(np.cos(thing.tilt)), float(np.sin(thing.tilt))
    step = (FIELD - 1) / (2 * REACH)
    u = np.clip((cos * px + sin * py + REACH) * step, 0, FIELD - 1.001)
    v = np.clip((cos * py - sin * px + REACH) * step, 0, FIELD - 1.001)
    i, j = v.astype(np.intp), u.astype(np.intp)
    fv, fu = v - i, u - j
    field = _distance_field(thing.shape).ravel()
    at = i * FIELD + j
    upper = field[at] * (1 - fu) + field[at + 1] * fu
    lower = field[at + FIELD] * (1 - fu) + field[at + FIELD + 1] * fu
    distance = (upper * (1 - fv) + lower * fv) * half
    return np.clip(0.5 - distance, 0, 1), top, left


def background(rng: np.random.Generator) -> FloatArray:
    """A mid-grey plane with a faint tint that falls off softly across the image.  # (H, W, 3) in 0..255"""
    base = rng.uniform(118, 158) + rng.uniform(-9, 9, 3)
    slope = rng.uniform(-10, 10, 2)
    axis = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    plane = slope[0] * axis[:, None] + slope[1] * axis[None, :]
    return np.asarray(base[None, None, :] + plane[:, :, None], np.float32)


def render(scene: Scene, masks: Mapping[int, Mask] = MappingProxyType({})) -> Image:
    """Draw a scene, antialiased, in the order of its objects; `masks` replaces the outline of some.  # (H, W, 3)"""
    rng = np.random.default_rng(scene.seed)
    canvas = background(rng)
    for index, thing in enumerate(scene.things):
        alpha, top, left = masks[index] if index in masks else coverage(thing)
        h, w = alpha.shape
        paint = np.array(PALETTE[thing.colour], np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
        light = 1 + 0.05 * ((thing.y - np.arange(top, top + h, dtype=np.float32)) / thing.size)
        patch = canvas[top : top + h, left : left + w]
        patch += alpha[:, :, None] * (paint * light[:, None, None] - patch)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


CELL = 8
"""Side in pixels of a label cell: one token of the shapes generator, one patch of its judge."""


def label_maps(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shape and colour in each cell, 1 + index into SHAPES and COLOURS, 0 where an object covers less than a fifth."""
    side = CANVAS // CELL
    shapes, colours = np.zeros((side, side), np.int64), np.zeros((side, side), np.int64)
    best = np.full((side, side), 0.2, np.float32)
    for thing in scene.things:
        alpha, top, left = coverage(thing)
        full = np.zeros((CANVAS, CANVAS), np.float32)
        full[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
        share = full.reshape(side, CELL, side, CELL).mean((1, 3))
        more = share > best
        best = np.where(more, share, best)
        shapes[more] = 1 + SHAPES.index(thing.shape)
        colours[more] = 1 + COLOURS.index(thing.colour)
    return shapes, colours
