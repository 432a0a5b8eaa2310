"""Lessons for the shapes judge: seeded, labelled by the evaluator, scored by category."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bestofn.models.shapes.prompts import counted, held_out, pair, single
from bestofn.models.shapes.scenes import HELD_COLOUR_SHAPES
from bestofn.models.shapes.world import Scene, Thing, render
from bestofn.training.judge.dataset import GRID, Generated, batches, category, words
from bestofn.training.judge.trainer import School

STAR, RING = Thing("star", "red", 16, 32, 22), Thing("ring", "blue", 47, 30, 22)
PICTURE = render(Scene((STAR, RING), 5))
SPEC = pair("star", "ring", ("red", "blue"), "left of")


@pytest.mark.parametrize(
    "spec",
    [
        single("ring"),
        single("ring", "red"),
        counted("star", 3),
        counted("star", 3, "red"),
        pair("star", "ring"),
        pair("star", "ring", ("red", "blue")),
        pair("star", "ring", None, "above"),
        SPEC,
    ],
    ids=lambda spec: str(spec.tag),
)
def test_the_category_is_read_off_the_prompt(spec: object) -> None:
    assert category(spec.prompt) == spec.tag  # type: ignore[attr-defined]


def test_a_generators_picture_is_labelled_by_the_evaluator() -> None:
    one = Generated.of(PICTURE, SPEC)
    assert one.correct
    assert not Generated.of(PICTURE, pair("star", "ring", ("blue", "red"))).correct
    rng = np.random.default_rng(0)
    asked = [x for _ in range(20) for x in one.lesson(rng, 6).asked]
    assert asked[0] == asked[6]
    assert (asked[0].prompt, asked[0].satisfied, asked[0].weight) == (
        SPEC.prompt,
        True,
        4.0,
    )  # its own prompt, and a relation
    assert 0.2 < np.mean([x.satisfied for x in asked if x.prompt != SPEC.prompt]) < 0.8
    assert {word for x in asked for word in x.prompt.split()} <= set(words())


def test_a_held_out_combination_is_not_confirmed() -> None:
    colour, shape = sorted(HELD_COLOUR_SHAPES)[0]
    picture = render(Scene((Thing(shape, colour, 32, 32, 30),), 1))
    one = Generated.of(picture, single(shape))
    prompts = {x.prompt for _ in range(30) for x in one.lesson(np.random.default_rng(_), 4).asked if x.satisfied}
    assert prompts == {single(shape).prompt}
    assert held_out(single(shape, colour))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    pool = [Generated.of(PICTURE, SPEC)]
    first, again, other = (batches(seed, 4, 3, 5, pool, 0.5)(7) for seed in (1, 1, 2))
    assert [x.asked for x in first] == [x.asked for x in again] != [x.asked for x in other]
    assert [x.description is None for x in first] == [True, True, False, False]
    assert first[2].cells is not None
    assert [(x.asked, x.description) for x in batches(1, 4, 3, 5)(4)] == [((), None)] * 8
    assert first[2].cells.shape == GRID


def test_a_school_scores_and_exports(tmp_path: Path) -> None:
    school = School(0)
    pool = [Generated.of(PICTURE, SPEC), Generated.of(PICTURE, single("cross"))] * 2
    assert school.choosing(pool, 2).items() >= {"one": 0.5, "oracle": 1.0}.items()
    figures = school.report([x for step in range(2) for x in batches(0, 2, 2)(step)])
    assert set(figures) > {"accuracy"}
    school.export(tmp_path / "judge")
    assert {path.name for path in (tmp_path / "judge").iterdir()} == {
        "bestofn.json",
        "config.json",
        "llm",
        "mm_projector",
        "vision_tower",
    }
