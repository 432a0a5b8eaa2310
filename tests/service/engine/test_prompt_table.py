"""Prompt table: a prompt is held once, stays while there is room, and is never overwritten while a row reads it."""

import torch

from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.engine.prompts import STEP, PromptTable


def context(value: float) -> PromptContext:
    return PromptContext(
        torch.full((2, 1, 1, 3, 4), value), torch.full((2, 1, 1, 3, 4), -value), torch.zeros(1, 1, 1, 3)
    )


def test_prompts_share_places_and_only_idle_ones_are_overwritten() -> None:
    prompts = [context(float(i)) for i in range(STEP + 1)]
    table = PromptTable(prompts[0])
    before = table.buffers
    places = [table.take(prompt) for prompt in prompts[:STEP]]
    assert table.take(prompts[3]) == places[3]
    assert table.buffers is before
    table.give_back(places[3])
    assert table.take(prompts[STEP]) == STEP, "a row still reads the prompt that was given back once"
    assert len(table.buffers) == 2 * STEP
    for i, place in enumerate([*places, STEP]):
        assert table.buffers.keys[:, place].unique().tolist() == [float(i)]
        assert table.buffers.values[:, place].unique().tolist() == [-float(i)]


def test_an_idle_prompt_stays_until_its_place_is_needed() -> None:
    prompts = [context(float(i)) for i in range(STEP + 1)]
    table = PromptTable(prompts[0])
    places = [table.take(prompt) for prompt in prompts[:STEP]]
    for place in places[1:]:
        table.give_back(place)
    table.take(prompts[1])
    assert table.take(prompts[STEP]) == places[2], "of the idle ones that which was used least recently"
    assert table.buffers.keys[:, places[1]].unique().tolist() == [1.0]
    assert len(table.buffers) == STEP
