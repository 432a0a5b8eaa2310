"""The evaluator: exact on rendered truth, deaf to none of the hard negatives."""

import numpy as np
import pytest

from bestofn.models.shapes.evaluator import detect, evaluate
from bestofn.models.shapes.prompts import PromptSpec, caption, counted, pair, single
from bestofn.models.shapes.questions import MALFORMED, sample_questions
from bestofn.models.shapes.scenes import place, sample_wish
from bestofn.models.shapes.world import COLOURS, SHAPES, Scene, Thing, render


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


def test_questions_are_half_yes_and_repeatable() -> None:
    drawn = [sample_questions(np.random.default_rng(seed), 6) for seed in range(150)]
    answers = [answer for image in drawn for _, answer in image.questions]
    assert 0.35 < np.mean(answers) < 0.6
    again = sample_questions(np.random.default_rng(5), 6)
    assert again.questions == drawn[5].questions
    assert np.array_equal(again.image, drawn[5].image)
    assert max(image.label_map_shape.max() for image in drawn) == MALFORMED
    assert all((p.label_map_shape.shape, p.image.shape) == ((8, 8), (64, 64, 3)) for p in drawn)
