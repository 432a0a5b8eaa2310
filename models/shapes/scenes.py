"""Which scenes are drawn: layouts with clear counts and relations, and the combinations kept out of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bestofn.models.shapes.world import CANVAS, COLOURS, MAX_TILT, SHAPES, SIZES, Scene, Thing

RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = {"two": 2, "three": 3, "four": 4}

# Never drawn for training, neither by this name nor by its inverse. Every shape, colour, count and relation is still
# seen in other combinations, so that a held-out prompt asks for composition, not for an unknown word.
HELD_COLOUR_SHAPES = frozenset(
    {
        ("orange", "circle"),
        ("purple", "square"),
        ("white", "triangle"),
        ("green", "star"),
        ("black", "heart"),
        ("red", "ring"),
        ("blue", "cross"),
        ("pink", "diamond"),
    }
)
HELD_SHAPE_PAIRS = frozenset(
    {
        frozenset({"ring", "heart"}),
        frozenset({"triangle", "diamond"}),
        frozenset({"square", "star"}),
        frozenset({"circle", "cross"}),
    }
)
HELD_COUNTS = frozenset({(3, "square"), (3, "heart"), (4, "triangle"), (4, "ring")})
HELD_RELATIONS = frozenset(
    {
        ("circle", "left of", "square"),
        ("heart", "left of", "triangle"),
        ("diamond", "left of", "cross"),
        ("star", "left of", "ring"),
        ("square", "left of", "heart"),
        ("ring", "left of", "triangle"),
        ("triangle", "above", "circle"),
        ("heart", "above", "star"),
        ("cross", "above", "ring"),
        ("square", "above", "diamond"),
        ("star", "above", "diamond"),
        ("circle", "above", "ring"),
    }
)


def relation_held(first: str, relation: str, second: str) -> bool:
    """Whether the scene that these words describe is held out, under either of its two names."""
    return (first, relation, second) in HELD_RELATIONS or (second, INVERSE[relation], first) in HELD_RELATIONS


@dataclass(frozen=True)
class Wish:
    """What a scene must show: its objects in order, and how the first of two lies to the second."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    relation: str | None = None


def trainable(wish: Wish) -> bool:
    """Whether nothing in the wish is held out of training."""
    pairs = zip(wish.colours, wish.shapes, strict=True)
    kinds = frozenset(wish.shapes)
    return (
        HELD_COLOUR_SHAPES.isdisjoint(pairs)
        and not (len(kinds) == 2 and kinds in HELD_SHAPE_PAIRS)
        and not (len(kinds) == 1 and (len(wish.shapes), wish.shapes[0]) in HELD_COUNTS)
        and not (wish.relation and len(kinds) == 2 and relation_held(wish.shapes[0], wish.relation, wish.shapes[1]))
    )


def sample_wish(rng: np.random.Generator) -> Wish:
    """A random training scene: one object, two in a clear relation, or two to four of one shape."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    while True:
        kind = rng.random()
        if kind < 0.22:
            wish = Wish((pick(SHAPES),), (pick(COLOURS),))
        elif kind < 0.72:
            wish = Wish((pick(SHAPES), pick(SHAPES)), (pick(COLOURS), pick(COLOURS)), pick(RELATIONS))
            if wish.shapes[0] == wish.shapes[1]:
                continue
        else:
            count = int(rng.choice([2, 3, 4], p=[0.24, 0.38, 0.38]))
            shape, colour = pick(SHAPES), pick(COLOURS)
            same = rng.random() < 0.6
            colours = tuple(colour if same else pick(COLOURS) for _ in range(count))
            wish = Wish((shape,) * count, colours, pick(RELATIONS) if count == 2 else None)
        if trainable(wish):
            return wish


def place(rng: np.random.Generator, wish: Wish) -> Scene:
    """Draw sizes, tilts and positions that fit the wish: no overlap, clear margins, nothing cut off."""
    n = len(wish.shapes)
    low, high = SIZES[n]
    while True:
        sizes = rng.uniform(low, high, n)
        centres = _pair(rng, wish.relation or "left of", sizes) if n == 2 else _cells(rng, sizes)
        if centres is not None:
            break
    tilts = rng.uniform(-MAX_TILT, MAX_TILT, n)
    things = tuple(
        Thing(shape, colour, float(x), float(y), float(size), float(tilt))
        for shape, colour, (x, y), size, tilt in zip(wish.shapes, wish.colours, centres, sizes, tilts, strict=True)
    )
    return Scene(things, int(rng.integers(2**31)))


def _pair(rng: np.random.Generator, relation: str, sizes: np.ndarray) -> list[tuple[float, float]] | None:
    """Two centres of which the first lies `relation` the second, within 25 degrees of the axis."""
    angle = rng.uniform(-0.44, 0.44)
    gap = sizes.sum() / 2 + 5 + rng.uniform(0, 1) * (CANVAS - sizes.sum() - 4) * 0.5
    along, across = gap * math.cos(angle), gap * math.sin(angle)
    dx, dy = {
        "left of": (along, across),
        "right of": (-along, across),
        "above": (across, along),
        "below": (across, -along),
    }[relation]
    half = sizes / 2 + 2
    low_x, high_x = max(half[0], half[1] - dx), min(CANVAS - half[0], CANVAS - half[1] - dx)
    low_y, high_y = max(half[0], half[1] - dy), min(CANVAS - half[0], CANVAS - half[1] - dy)
    if low_x > high_x or low_y > high_y or along < sizes.sum() / 2 + 3:
        return None
    x, y = rng.uniform(low_x, high_x), rng.uniform(low_y, high_y)
    return [(x, y), (x + dx, y + dy)]


def _cells(rng: np.random.Generator, sizes: np.ndarray) -> list[tuple[float, float]]:
    """One centre anywhere, or three and four in quarters of the canvas of their own."""
    if len(sizes) == 1:
        half = sizes[0] / 2 + 2
        return [(rng.uniform(half, CANVAS - half), rng.uniform(half, CANVAS - half))]
    side = CANVAS / 2
    cells = rng.permutation(4)[: len(sizes)]
    centres = []
    for cell, size in zip(cells, sizes, strict=True):
        slack = side - size - 4
        left, top = (cell % 2) * side, (cell // 2) * side
        centres.append(
            (left + 2 + size / 2 + rng.uniform(0, slack), top + 2 + size / 2 + rng.uniform(0, slack)),
        )
    return centres
