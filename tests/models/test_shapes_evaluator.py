"""The evaluator: exact on rendered truth, deaf to none of the hard negatives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bestofn.models.shapes.evaluator import MIN_AREA, connected_regions, detect, evaluate, measure, well_formed
from bestofn.models.shapes.prompts import PromptSpec, caption, counted, held_out, pair, single
from bestofn.models.shapes.questions import drawn_object, random_scene, sample_questions
from bestofn.models.shapes.rules import Found
from bestofn.models.shapes.scenes import place, sample_wish
from bestofn.models.shapes.world import COLOURS, PALETTE, SHAPES, Scene, Thing, render


def test_exact_on_rendered_truth() -> None:
    rng = np.random.default_rng(11)
    for _ in range(200):
        wish = sample_wish(rng)
        scene = place(rng, wish)
        image = render(scene)
        found = sorted((f.shape, f.colour) for f in detect(image))
        assert found == sorted((t.shape, t.colour) for t in scene.things)
        assert evaluate(image, caption(rng, wish)).correct


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_in_every_colour(shape: str, colour: str) -> None:
    for k, size in enumerate((16.0, 22.0, 34.0)):
        (found,) = detect(render(Scene((Thing(shape, colour, 25.3, 33.8, size, 0.12 - 0.12 * k),), k)))
        assert (found.shape, found.colour) == (shape, colour)
        assert abs((found.box[0] + found.box[2]) / 2 - 25.3) < 2


STAR_LEFT = Scene((Thing("star", "red", 18, 30, 22), Thing("circle", "blue", 46, 32, 22)), 3)
THREE = Scene(tuple(Thing("ring", "green", x, y, 18) for x, y in ((15, 15), (46, 17), (16, 47))), 4)
NEGATIVES = {
    "count too high": (THREE, counted("ring", 4)),
    "count too low": (THREE, counted("ring", 2)),
    "colour of a count": (THREE, counted("ring", 3, "blue")),
    "wrong shape": (STAR_LEFT, pair("star", "ring")),
    "wrong colour": (STAR_LEFT, single("star", "orange")),
    "swapped colours": (STAR_LEFT, pair("star", "circle", ("blue", "red"))),
    "flipped relation": (STAR_LEFT, pair("star", "circle", None, "right of")),
    "turned relation": (STAR_LEFT, pair("star", "circle", None, "above")),
    "relation with swapped colours": (STAR_LEFT, pair("star", "circle", ("blue", "red"), "left of")),
}


@pytest.mark.parametrize(("scene", "spec"), NEGATIVES.values(), ids=NEGATIVES)
def test_rejects(scene: Scene, spec: PromptSpec) -> None:
    result = evaluate(render(scene), spec)
    assert not result.correct
    assert result.reason.startswith("expected")


def test_accepts_the_truth() -> None:
    assert evaluate(render(STAR_LEFT), pair("star", "circle", ("red", "blue"), "left of")).correct
    assert evaluate(render(THREE), counted("ring", 3, "green")).correct


def test_finds_nothing_in_noise_or_emptiness() -> None:
    assert detect(render(Scene((), 1))) == ()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert detect(noise) == ()
    with pytest.raises(ValueError, match="64"):
        detect(np.zeros((32, 64, 3), np.uint8))


def test_a_component_reports_overlap_and_purity() -> None:
    scene = Scene((Thing("star", "red", 18, 30, 22), Thing("circle", "orange", 46, 32, 22)), 3)
    image = render(scene)
    (star, circle) = measure(image)
    assert (star.shape, star.colour, circle.shape, circle.colour) == ("star", "red", "circle", "orange")
    assert min(star.overlap, circle.overlap) > 0.85
    assert star.purity == circle.purity == 1.0
    assert star.mask.sum() == pytest.approx(star.alpha.sum(), rel=0.15)
    lower = (np.arange(64)[:, None] > 33) & circle.mask
    image[lower] = PALETTE["red"]
    (star, circle) = measure(image)
    assert circle.well_shaped
    assert circle.purity == pytest.approx(0.6, abs=0.1)
    assert not circle.one_coloured
    assert well_formed((star, circle)) == detect(image) == well_formed((star,))


def test_questions_are_half_yes_repeatable_and_without_held_out_combinations() -> None:
    answers: list[bool] = []
    for seed in range(150):
        scene = random_scene(np.random.default_rng(seed))
        objects = tuple(drawn_object(thing) for thing in scene.things)
        first, second = (sample_questions(np.random.default_rng(seed), objects, objects, 6) for _ in range(2))
        assert first == second
        assert not any(held_out(spec) for spec, _ in first)
        answers += [answer for _, answer in first]
    assert 0.4 < np.mean(answers) < 0.6


def test_a_held_out_combination_is_neither_confirmed_nor_denied() -> None:
    hearts = tuple(Found("heart", "red", (x, 10.0, x + 15, 25.0)) for x in (5.0, 25.0, 45.0))
    prompts = {
        spec.prompt for seed in range(60) for spec, _ in sample_questions(np.random.default_rng(seed), hearts, (), 6)
    }
    assert counted("heart", 2).prompt in prompts
    assert counted("heart", 3).prompt not in prompts
    assert sample_questions(np.random.default_rng(0), (), (), 6) == []


@given(share=st.floats(0, 1), side=st.integers(1, 24), seed=st.integers(0, 10**6))
def test_regions_are_those_that_grow_until_they_touch_nothing_else(share: float, side: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((side, side + 3)) < share
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    wanted = []
    while left:
        region, edge = set(), {left.pop()}
        while edge:
            region |= edge
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= edge
        if len(region) >= MIN_AREA:
            wanted.append(region)
    found = [{(int(y), int(x)) for y, x in np.argwhere(region)} for region in connected_regions(mask)]
    assert sorted(found, key=min) == sorted(wanted, key=min)
