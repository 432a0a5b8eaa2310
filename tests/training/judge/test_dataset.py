"""Batches of judge training: seeded, labelled by the evaluator, grouped for ranking, without held-out combinations."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from bestofn.models.shapes.prompts import PromptSpec, counted, pair, single
from bestofn.models.shapes.rules import Found
from bestofn.models.shapes.scenes import HELD_COLOUR_SHAPES
from bestofn.models.shapes.world import Scene, Thing, render
from bestofn.training.judge.dataset import (
    BatchSampler,
    auxiliary_targets,
    category,
    generated_example,
    is_mixed,
    label_pool,
    words,
)
from bestofn.training.judge.image_pool import PoolImages
from bestofn.training.judge.labels import GRID
from bestofn.training.judge.outlines import OutlineLibrary
from bestofn.training.judge.settings import BatchMix

STAR, RING = Thing("star", "red", 16, 32, 22), Thing("ring", "blue", 47, 30, 22)
SPEC = pair("star", "ring", ("red", "blue"), "left of")
RIGHT, WRONG = render(Scene((STAR, RING), 5)), render(Scene((STAR,), 5))
POOL = [
    PoolImages(np.stack([RIGHT, WRONG, RIGHT, WRONG]), (SPEC,) * 4),
    PoolImages(np.stack([RIGHT, RIGHT]), (single("star"), single("ring"))),
]


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
def test_the_category_is_read_off_the_prompt(spec: PromptSpec) -> None:
    assert category(spec.prompt) == spec.tag


def test_auxiliary_targets_follow_each_named_object_and_the_relation() -> None:
    found = [Found("star", "red", (0, 0, 9, 9)), Found("ring", "red", (30, 0, 39, 9))]
    assert auxiliary_targets(SPEC.prompt, found) == ((6, True), (8, True), (11, False))
    assert auxiliary_targets(SPEC.prompt.replace("left", "right"), found) == ((6, True), (8, False), (11, False))
    assert auxiliary_targets(counted("ring", 3).prompt, found) == ((5, True),)


def test_a_pool_is_labelled_by_the_evaluator_and_grouped_by_prompt() -> None:
    groups, objects = label_pool(POOL)
    assert [[one.correct for one in group] for group in groups] == [[True, False, True, False], [True], [True]]
    assert [is_mixed(group) for group in groups] == [True, False, False]
    assert len(objects) == 10
    example = generated_example(np.random.default_rng(0), groups[0][0], 5, group=3)
    first, *others = example.questions
    assert (first.prompt, first.satisfied, first.weight, first.group) == (SPEC.prompt, True, 4.0, 3)
    assert all(question.group is None for question in others)
    assert example.description == "red star blue ring"
    assert {word for question in example.questions for word in question.prompt.split()} <= set(words())


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    groups, objects = label_pool(POOL)

    def batch(seed: int, step: int) -> list[tuple[tuple[str, bool], ...]]:
        sampler = BatchSampler(seed, BatchMix(), [groups], OutlineLibrary(objects))
        return [tuple((q.prompt, q.satisfied) for q in one.questions) for one in sampler(step)]

    assert batch(1, 7) == batch(1, 7)
    assert batch(1, 7) != batch(2, 7)
    assert batch(1, 7) != batch(1, 8)


def test_groups_hold_one_prompt_with_both_answers_where_the_pool_has_them() -> None:
    groups, objects = label_pool(POOL)
    sampler = BatchSampler(
        0, BatchMix(groups=3, pairs=1, place_pairs=1, scenes=1), [groups[:1]], OutlineLibrary(objects)
    )
    asked: dict[int, list[tuple[str, bool]]] = defaultdict(list)
    for one in sampler(0):
        for question in one.questions:
            if question.group is not None:
                asked[question.group].append((question.prompt, question.satisfied))
    assert sorted(asked) == [0, 1, 2, 3, 4]
    assert all(len({prompt for prompt, _ in answers}) == 1 for answers in asked.values())
    assert [sorted(ok for _, ok in asked[k]) for k in range(5)] == [[False, False, True, True]] * 3 + [
        [False, True]
    ] * 2


def test_the_vision_warmup_has_label_maps_alone() -> None:
    sampler = BatchSampler(0, BatchMix(groups=0, pairs=1, place_pairs=0, scenes=2), vision_warmup_steps=2)
    assert [(one.questions, one.description) for one in sampler(1)] == [((), None)] * 8
    assert all(one.cells is not None and one.cells.shape == GRID for one in sampler(1))
    assert any(one.questions for one in sampler(2))


def test_no_question_names_a_held_out_combination() -> None:
    groups, objects = label_pool(POOL)
    sampler = BatchSampler(0, BatchMix(), [groups], OutlineLibrary(objects))
    prompts = {question.prompt for step in range(12) for one in sampler(step) for question in one.questions}
    assert len(prompts) > 300
    assert not [p for p in prompts if any(f"{colour} {shape}" in p for colour, shape in HELD_COLOUR_SHAPES)]
    assert not [p for p in prompts if "three hearts" in p or "four rings" in p or "ring and a heart" in p]
