"""Labels of an image come from the evaluator: cells, description, overlap classes and mixed colours."""

from __future__ import annotations

import numpy as np

from bestofn.models.shapes.world import COLOURS, SHAPES, Scene, Thing, coverage, render
from bestofn.training.judge.labels import CLASSES, GRID, MALFORMED, MIXED, LabelledImage

STAR, RING = Thing("star", "red", 16, 32, 22), Thing("ring", "blue", 47, 30, 22)


def test_a_sound_image_is_described_from_left_to_right() -> None:
    labelled = LabelledImage.of(render(Scene((RING, STAR), 5)))
    assert labelled.description == "red star blue ring"
    assert [(f.shape, f.colour) for f in labelled.found] == [("star", "red"), ("ring", "blue")]
    assert labelled.cells.shape == GRID
    assert set(labelled.cells[0].ravel()) == {0, 1 + SHAPES.index("star"), 1 + SHAPES.index("ring")}
    assert set(labelled.cells[1].ravel()) == {0, 1 + COLOURS.index("red"), 1 + COLOURS.index("blue")}
    assert set(labelled.cells[2].ravel()) == {0, CLASSES[2] - 1}
    assert ((labelled.cells > 0).any(0) == (labelled.cells > 0).all(0)).all()


def test_flaws_have_classes_and_words_of_their_own() -> None:
    alpha, top, left = coverage(STAR)
    alpha[: alpha.shape[0] // 2] = 0  # the upper half of the star is missing
    image = render(Scene((STAR, RING), 5), {0: (alpha, top, left)})
    blue = (image[..., 2] > 180) & (np.arange(64)[:, None] > 33)
    image[blue] = (60, 40, 150)  # the lower half of the ring is nearer to purple
    labelled = LabelledImage.of(image)
    assert labelled.found == ()
    assert labelled.description is not None
    assert labelled.description.split()[:2] == ["red", "malformed"]
    assert labelled.description.split()[2:] == ["malformed", "ring"]
    assert labelled.cells[0].max() == MALFORMED
    assert labelled.cells[1].max() == MIXED


def test_a_held_out_colour_is_not_described() -> None:
    held = LabelledImage.of(render(Scene((Thing("circle", "orange", 32, 32, 24),), 1)))
    assert [(f.shape, f.colour) for f in held.found] == [("circle", "orange")]
    assert held.description is None
    assert LabelledImage.of(render(Scene((), 1))).description is None
