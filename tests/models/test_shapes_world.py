"""The drawn world: what training shows, what it keeps back, and the metadata of its prompts."""

from collections import Counter

import numpy as np
import pytest

from bestofn.models.shapes.prompts import (
    CATEGORIES,
    Requirement,
    benchmark_prompts,
    caption,
    counted,
    held_out,
    known_words,
    pair,
    sample_prompt,
    single,
)
from bestofn.models.shapes.rules import Found, relations, violation
from bestofn.models.shapes.scenes import HELD_COLOUR_SHAPES, Wish, place, sample_wish, trainable
from bestofn.models.shapes.world import CANVAS, COLOURS, SHAPES, Scene, Thing, label_maps, render

SPECS = {
    "a photo of a ring": single("ring"),
    "a photo of an orange square": single("square", "orange"),
    "a photo of three circles": counted("circle", 3),
    "a photo of four red crosses": counted("cross", 4, "red"),
    "a photo of a ring and a heart": pair("ring", "heart"),
    "a photo of a star left of a circle": pair("star", "circle", None, "left of"),
    "a photo of a red star left of a blue circle": pair("star", "circle", ("red", "blue"), "left of"),
    "a photo of a red star and a green circle": pair("star", "circle", ("red", "green")),
}


@pytest.mark.parametrize("prompt", SPECS)
def test_prompt_wording_has_known_words_only(prompt: str) -> None:
    spec = SPECS[prompt]
    assert spec.prompt == prompt
    assert set(prompt.split()) <= known_words()


def test_metadata_is_genevals() -> None:
    spec = pair("star", "circle", None, "left of")
    assert spec.tag == "position"
    assert spec.include == (Requirement("circle"), Requirement("star", position=("left of", 0)))
    assert counted("ring", 2).exclude == (Requirement("ring", 3),)


def test_training_shows_no_held_out_combination() -> None:
    rng = np.random.default_rng(1)
    seen: set[tuple[str, str]] = set()
    for _ in range(3000):
        wish = sample_wish(rng)
        spec = caption(rng, wish)
        assert trainable(wish)
        assert not held_out(spec), spec.prompt
        assert len(spec.prompt.split()) <= 11
        seen |= set(zip(wish.colours, wish.shapes, strict=True))
    assert len(seen) == len(SHAPES) * len(COLOURS) - len(HELD_COLOUR_SHAPES)


def test_captions_are_true_of_their_scenes() -> None:
    rng = np.random.default_rng(2)
    for _ in range(400):
        wish = sample_wish(rng)
        scene = place(rng, wish)
        found = [Found(t.shape, t.colour, t.box) for t in scene.things]
        spec = caption(rng, wish)
        assert violation(found, spec) is None, (spec.prompt, scene)
        assert all(0 <= edge <= CANVAS for f in found for edge in f.box)


def test_test_set() -> None:
    prompts = benchmark_prompts()
    assert prompts == benchmark_prompts()
    assert Counter(p.spec.tag for p in prompts) == dict.fromkeys(CATEGORIES, 40)
    assert all(p.held_out == held_out(p.spec) for p in prompts)
    assert sum(p.held_out for p in prompts) == 76
    assert len({p.seed for p in prompts}) == len(prompts)


@pytest.mark.parametrize("tag", [*CATEGORIES, "counting_color", "position_color"])
def test_sampled_prompts_are_trainable(tag: str) -> None:
    rng = np.random.default_rng(3)
    specs = [sample_prompt(rng, tag) for _ in range(200)]
    assert all(spec.tag == tag and not held_out(spec) for spec in specs)


def test_demo_prompts_are_trained() -> None:
    assert not held_out(pair("star", "circle", ("red", "blue"), "left of"))
    assert not held_out(counted("circle", 3, "red"))
    assert held_out(pair("square", "circle", None, "right of"))  # the inverse name of a held-out scene


def test_relations_follow_geneval() -> None:
    here = Found("ring", "red", (10, 10, 20, 20))
    assert relations(here, Found("star", "red", (40, 10, 50, 20))) == {"left of"}
    assert relations(here, Found("star", "red", (40, 40, 50, 50))) == {"left of", "above"}
    assert relations(here, Found("star", "red", (11, 10, 21, 20))) == set()


def test_render_is_a_function_of_the_scene() -> None:
    scene = Scene((Thing("star", "red", 30, 30, 24, 0.1),), 7)
    image = render(scene)
    assert image.shape == (CANVAS, CANVAS, 3)
    assert np.array_equal(image, render(scene))
    shapes, colours = label_maps(scene)
    assert set(shapes.ravel()) == {0, 1 + SHAPES.index("star")}
    assert np.array_equal(shapes > 0, colours > 0)
    assert trainable(Wish(("star",), ("red",)))
