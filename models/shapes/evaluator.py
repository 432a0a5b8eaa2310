"""Exact evaluator of shapes images: classical vision in numpy, no learned part, nothing shared with a judge.

Background by robust regression, objects by connected components, shape by template overlap, colour by the nearest
palette entry, then GenEval's rules. Axes: H height, W width, T templates, G side of a template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bestofn.models.shapes.prompts import PromptSpec
from bestofn.models.shapes.rules import Found, violation
from bestofn.models.shapes.world import CANVAS, COLOURS, MAX_TILT, PALETTE, SHAPES, FloatArray, Image, Thing, coverage

CONTRAST = 42.0
"""Distance from the background, in units of one channel, at which a pixel belongs to an object."""

MIN_AREA = 24
"""Pixels; smaller specks are no objects."""

GRID = 24
OVERLAP = 0.75
"""Least intersection over union with the best template; rendered truth stays above 0.85."""

ASPECT = 0.3
"""Greatest difference of log(width / height) to the template's."""

PURITY = 0.75
"""Least share of an object's core pixels that are nearest to its colour."""


@dataclass(frozen=True, eq=False)
class Component:
    """One connected object of an image, measured against every template.

    Attributes:
        shape: name of the shape whose template overlaps it most.
        overlap: intersection over union with that template, 0 to 1; 0 where no template has its aspect.
        colour: name of the palette entry that most of its core pixels are nearest to.
        purity: share of its core pixels that are nearest to `colour`, 0 to 1.
        box: left, top, right, bottom of its outline, in pixels.
        mask: (H, W), True on its pixels.
        alpha: (h, w), coverage of each pixel of its window, 0 to 1: the mask's bounding box and a rim of two pixels.
        window: left and top of that window, in pixels.
    """

    shape: str
    overlap: float
    colour: str
    purity: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]
    alpha: FloatArray
    window: tuple[int, int]

    @property
    def well_shaped(self) -> bool:
        """Whether it fits a template."""
        return self.overlap >= OVERLAP

    @property
    def one_coloured(self) -> bool:
        """Whether it has a single colour."""
        return self.purity >= PURITY


@dataclass(frozen=True)
class Evaluation:
    """Whether an image shows what the prompt says, and the rule it breaks if not."""

    correct: bool
    reason: str


@cache
def _quadratic() -> FloatArray:
    """Basis 1, x, y, x^2, xy, y^2 over the canvas.  # (H W, 6)"""
    axis = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    y, x = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1)


def _length(vectors: NDArray[np.floating]) -> FloatArray:
    """Lengths of colours (..., 3); `numpy.linalg.norm` takes four times as long.  # (...)"""
    squares = np.square(vectors)
    return np.asarray(np.sqrt(squares[..., 0] + squares[..., 1] + squares[..., 2]), np.float32)


def fit_background(image: Image) -> FloatArray:
    """The smooth surface that most of the image lies on, by regression that drops what does not fit.  # (H, W, 3)"""
    basis = _quadratic()
    pixels = image.reshape(-1, 3).astype(np.float32)
    frame = np.ones((CANVAS, CANVAS), bool)
    frame[3:-3, 3:-3] = False
    rim = pixels[frame.ravel()]
    keep = _length(pixels - np.median(rim, 0)) < 45
    for limit in (40, 28, 22, 18):
        if keep.sum() < 200:
            keep = frame.ravel()
        kept = basis[keep]
        weights = np.linalg.solve(kept.T @ kept + 1e-3 * np.eye(6, dtype=np.float32), kept.T @ pixels[keep])
        surface = basis @ weights
        keep = _length(pixels - surface) < limit
    return np.asarray(surface.reshape(CANVAS, CANVAS, 3), np.float32)


def connected_regions(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected regions (eight neighbours) of at least MIN_AREA pixels.  # each (H, W)"""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (part.tolist() for part in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))  # union-find over the runs of each row

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] < starts[run]):
            above += 1
        touching = above
        while rows[touching] == row - 1 and starts[touching] <= ends[run]:
            parent[root(touching)] = root(run)
            touching += 1
    regions: dict[int, NDArray[np.bool_]] = {}
    for run, row in enumerate(rows):
        region = regions.setdefault(root(run), np.zeros(mask.shape, bool))
        region[row, starts[run] : ends[run]] = True
    return [region for region in regions.values() if region.sum() >= MIN_AREA]


def _span(profile: FloatArray) -> tuple[float, float]:
    """Where a profile of coverages crosses one half for the first and the last time, in pixel edges."""
    above = np.flatnonzero(profile >= 0.5)
    if len(above) == 0:
        return 0.0, 0.0

    def crossing(inner: int, outer: int) -> float:
        rest = float(profile[outer]) if 0 <= outer < len(profile) else 0.0
        share = (float(profile[inner]) - 0.5) / max(float(profile[inner]) - rest, 1e-6)
        return inner + 0.5 + (outer - inner) * min(share, 1.0)

    first, last = int(above[0]), int(above[-1])
    return crossing(first, first - 1), crossing(last, last + 1)


def _normalised(alpha: FloatArray) -> tuple[FloatArray, tuple[float, float, float, float]]:
    """Coverage stretched from its tight box to the grid, and that box.  # (G, G)"""
    x0, x1 = _span(alpha.max(0))
    y0, y1 = _span(alpha.max(1))
    height, width = alpha.shape
    u = np.clip(x0 + (np.arange(GRID) + 0.5) / GRID * (x1 - x0) - 0.5, 0, width - 1.001)
    v = np.clip(y0 + (np.arange(GRID) + 0.5) / GRID * (y1 - y0) - 0.5, 0, height - 1.001)
    i, j = v.astype(np.intp), u.astype(np.intp)
    fv, fu = (v - i)[:, None], (u - j)[None, :]
    rows = alpha[i] * (1 - fv) + alpha[i + 1] * fv
    return np.asarray(rows[:, j] * (1 - fu) + rows[:, j + 1] * fu, np.float32), (x0, y0, x1, y1)


@cache
def _templates() -> tuple[FloatArray, FloatArray, tuple[str, ...]]:
    """Every shape at seven tilts and two sizes: grids (T, G G), log aspects (T), names."""
    grids, aspects, names = [], [], []
    for shape in SHAPES:
        for size in (17.0, 28.0):
            for tilt in np.linspace(-1.1, 1.1, 7) * MAX_TILT:
                alpha, _, _ = coverage(Thing(shape, "red", 32.0, 32.0, size, float(tilt)))
                grid, (x0, y0, x1, y1) = _normalised(alpha)
                grids.append(grid.ravel())
                aspects.append(np.log((x1 - x0) / (y1 - y0)))
                names.append(shape)
    return np.stack(grids), np.array(aspects, np.float32), tuple(names)


def match(alpha: FloatArray) -> tuple[str, float, tuple[float, float, float, float]]:
    """Best shape for a coverage, its overlap (0 if the aspect fits none), and the tight box in the array's pixels."""
    grid, (x0, y0, x1, y1) = _normalised(alpha)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return SHAPES[0], 0.0, (x0, y0, x1, y1)
    grids, aspects, names = _templates()
    flat = grid.ravel()
    overlap = np.minimum(grids, flat).sum(1) / np.maximum(grids, flat).sum(1)
    overlap[np.abs(aspects - np.log((x1 - x0) / (y1 - y0))) > ASPECT] = 0
    best = int(np.argmax(overlap))
    return names[best], float(overlap[best]), (x0, y0, x1, y1)


def _nearest(pixels: FloatArray) -> NDArray[np.intp]:
    """Index of the nearest palette colour.  # (P, 3) -> (P)"""
    palette = np.array([PALETTE[colour] for colour in COLOURS], np.float32)
    return np.asarray(_length(pixels[:, None] - palette).argmin(-1))


def measure(image: Image) -> tuple[Component, ...]:
    """Every object of an image (64, 64, 3), well-formed or not, from left to right."""
    if image.shape != (CANVAS, CANVAS, 3):
        raise ValueError(f"a shapes image is ({CANVAS}, {CANVAS}, 3), got {image.shape}")
    pixels = image.astype(np.float32)
    surface = fit_background(image)
    away = _length(pixels - surface)
    out = []
    for region in connected_regions(away > CONTRAST):
        core = region & (away > 0.8 * np.quantile(away[region], 0.8))
        votes = np.bincount(_nearest(pixels[core]), minlength=len(COLOURS))
        colour = int(votes.argmax())
        paint = np.median(pixels[core], 0)
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        top, bottom = max(0, int(rows[0]) - 2), min(CANVAS, int(rows[-1]) + 3)
        left, right = max(0, int(columns[0]) - 2), min(CANVAS, int(columns[-1]) + 3)
        window = (slice(top, bottom), slice(left, right))
        offset = paint - surface[window]
        alpha = ((pixels[window] - surface[window]) * offset).sum(-1) / np.square(offset).sum(-1)
        # Pixels of neighbours inside the window belong to other regions; only this region and its rim count.
        alpha = np.where(_grown(region)[window], np.clip(alpha, 0, 1), 0)
        shape, overlap, (x0, y0, x1, y1) = match(alpha)
        box = (left + x0, top + y0, left + x1, top + y1)
        purity = float(votes[colour] / votes.sum())
        out.append(Component(shape, overlap, COLOURS[colour], purity, box, region, alpha, (left, top)))
    return tuple(sorted(out, key=lambda component: component.box[0] + component.box[2]))


def well_formed(components: Sequence[Component]) -> tuple[Found, ...]:
    """Objects that fit a shape and have one colour, in the given order."""
    return tuple(Found(c.shape, c.colour, c.box) for c in components if c.well_shaped and c.one_coloured)


def detect(image: Image) -> tuple[Found, ...]:
    """Well-formed objects of an image (64, 64, 3), from left to right."""
    return well_formed(measure(image))


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(region, 1)
    out = padded.copy()
    for axis in (0, 1):
        out |= np.roll(out, 1, axis) | np.roll(out, -1, axis)
    return np.asarray(out[1:-1, 1:-1])


def evaluate(image: Image, spec: PromptSpec) -> Evaluation:
    """Judge an image (64, 64, 3) by GenEval's rules for the prompt."""
    reason = violation(detect(image), spec)
    return Evaluation(reason is None, reason or "")
