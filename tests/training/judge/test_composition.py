"""Outlines, composed scenes and minimal pairs: labelled by the evaluator, without held-out combinations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bestofn.models.shapes.evaluator import OVERLAP, evaluate, measure
from bestofn.models.shapes.prompts import held_out
from bestofn.models.shapes.scenes import HELD_COLOUR_SHAPES
from bestofn.models.shapes.world import COLOURS, Scene, Thing, render
from bestofn.training.judge.composition import NEIGHBOURS, composed_scene
from bestofn.training.judge.minimal_pairs import SWAPPED_PLACES, minimal_pair
from bestofn.training.judge.outlines import OutlineLibrary, Quality

PLACES = [(16.0, 16.0), (47.0, 17.0), (17.0, 47.0), (46.0, 46.0)]


@pytest.fixture(scope="module")
def library() -> OutlineLibrary:
    """Outlines of drawn stars and rings, some of them at the border or too large."""
    things = [Thing(shape, "red", x, y, 20) for shape in ("star", "ring") for x, y in PLACES]
    images = [render(Scene(tuple(things[:4]), 1)), render(Scene(tuple(things[4:]), 2))]
    images.append(render(Scene((Thing("star", "red", 8, 32, 20),), 3)))
    return OutlineLibrary(one for image in images for one in measure(image))


def test_the_library_has_whole_outlines_by_shape_and_quality(library: OutlineLibrary) -> None:
    counts = {key: len(there) for key, there in library.outlines.items() if there and key[1] is not Quality.NARROW}
    assert counts == {("star", Quality.GOOD): 4, ("ring", Quality.GOOD): 4}
    assert library.pick(np.random.default_rng(0), "heart", Quality.GOOD) is None
    assert library.pick(np.random.default_rng(0), "star", Quality.BAD) is None


def test_an_outline_is_fitted_to_a_thing(library: OutlineLibrary) -> None:
    rng = np.random.default_rng(0)
    outline = library.pick(rng, "star", Quality.GOOD)
    assert outline is not None
    wanted = Thing("star", "blue", 30, 34, 26)
    mask = outline.fitted(rng, wanted)
    (star,) = measure(render(Scene((wanted,), 4), {0: mask}))
    assert (star.shape, star.colour) == ("star", "blue")
    assert star.overlap > OVERLAP
    assert abs((star.box[0] + star.box[2]) / 2 - 30) < 1.5
    assert abs((star.box[2] - star.box[0]) - 26) < 4


@pytest.mark.parametrize("outlines", [True, False])
def test_a_pair_differs_in_what_decides_the_prompt(outlines: bool, library: OutlineLibrary) -> None:
    rng = np.random.default_rng(7)
    flaws: Counter[str] = Counter()
    for _ in range(40):
        pair = minimal_pair(rng, library if outlines else None)
        assert evaluate(pair.right.image, pair.spec).correct
        assert not evaluate(pair.wrong.image, pair.spec).correct
        assert not held_out(pair.spec)
        right, wrong = measure(pair.right.image), measure(pair.wrong.image)
        if len(right) == len(wrong):
            changed = [not one.well_shaped or not one.one_coloured for one in wrong]
            flaws[
                "outline" if any(not one.well_shaped for one in wrong) else "colour" if any(changed) else "other"
            ] += 1
            assert sum(changed) <= 1
    assert min(flaws["outline"], flaws["colour"], flaws["other"]) >= 3


@pytest.mark.parametrize(("flaws", "swapped"), [({"swapped colours": 1.0}, "colours"), (SWAPPED_PLACES, "places")])
def test_pairs_with_a_swap_hold_the_same_shapes_and_colours(flaws: dict[str, float], swapped: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(8):
        pair = minimal_pair(rng, None, flaws)
        right, wrong = (
            sorted((one.shape, one.colour) for one in measure(side.image)) for side in (pair.right, pair.wrong)
        )
        for k in (0, 1):
            assert sorted(one[k] for one in right) == sorted(one[k] for one in wrong)
        assert ("colours" if right != wrong else "places") == swapped


def test_scenes_show_flaws_and_no_held_out_combination(library: OutlineLibrary) -> None:
    rng = np.random.default_rng(3)
    components = [one for _ in range(60) for one in measure(composed_scene(rng, library)[0])]
    sound = [one for one in components if one.well_shaped and one.one_coloured]
    assert 0.4 < len(sound) / len(components) < 0.95
    assert any(not one.well_shaped for one in components)
    assert any(not one.one_coloured for one in components)
    whole = [one for _ in range(40) for one in measure(composed_scene(rng, None, flawed_share=0.0)[0])]
    assert np.mean([one.well_shaped for one in whole]) > 0.9
    drawn = [one for _ in range(100) for one in composed_scene(rng, None)[1]]
    assert HELD_COLOUR_SHAPES.isdisjoint((one.colour, one.shape) for one in drawn)


def test_every_colour_has_neighbours() -> None:
    assert set(NEIGHBOURS) == set(COLOURS) >= {name for names in NEIGHBOURS.values() for name in names}
