"""Minimal pairs: one scene twice, right for a prompt, then wrong: one object is spoilt, or two exchange something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bestofn.models.shapes.evaluator import measure, well_formed
from bestofn.models.shapes.prompts import PromptSpec, caption, held_out
from bestofn.models.shapes.questions import malformed, softened
from bestofn.models.shapes.rules import violation
from bestofn.models.shapes.scenes import place, sample_wish
from bestofn.models.shapes.world import Thing, background, coverage
from bestofn.training.judge.composition import (
    ColourMix,
    PaintedObject,
    blended,
    compose,
    outline,
    random_tint,
    reshaped,
    stretched,
)
from bestofn.training.judge.labels import LabelledImage
from bestofn.training.judge.outlines import OutlineLibrary, Quality

FLAWS = {
    "near outline": 0.30,
    "mixed colours": 0.19,
    "stretched": 0.06,
    "malformed": 0.05,
    "merged": 0.04,
    "another shape": 0.04,
    "swapped colours": 0.32,
}
"""Share of each flaw among attempts. Most prompts name no two colours, so most swaps are no flaw."""

SWAPPED_PLACES = {"swapped places": 1.0}
"""The flaw that a judge learns last, from many such pairs before all others."""


@dataclass(frozen=True, eq=False)
class MinimalPair:
    """Two images that differ in one or two objects; the evaluator accepts the first for the prompt, not the second."""

    spec: PromptSpec
    right: LabelledImage
    wrong: LabelledImage


def minimal_pair(
    rng: np.random.Generator, library: OutlineLibrary | None, flaws: Mapping[str, float] = FLAWS
) -> MinimalPair:
    """A random pair without held-out combinations.

    Args:
        rng: source of everything.
        library: generated outlines; None for drawn shapes alone.
        flaws: share of each flaw among attempts.
    """
    while True:
        pair = _attempt(rng, library, flaws)
        if pair is not None:
            return pair


def _attempt(
    rng: np.random.Generator, library: OutlineLibrary | None, flaws: Mapping[str, float]
) -> MinimalPair | None:
    wish = sample_wish(rng)
    scene, spec = place(rng, wish), caption(rng, wish)
    if held_out(spec):
        return None
    canvas = background(rng)
    objects = [PaintedObject(thing, _sound_mask(rng, thing, library), random_tint(rng)) for thing in scene.things]
    victim = int(rng.integers(len(objects)))
    flaw = list(flaws)[int(rng.choice(len(flaws), p=list(flaws.values())))]
    changed = _changed(rng, flaw, objects, victim, library)
    if changed is None:
        return None
    soft, grain = rng.random() < 0.35, int(rng.integers(2**31))
    sides = []
    spoilt = [changed.get(index, one) for index, one in enumerate(objects)]
    for painted, wanted in ((objects, True), (spoilt, False)):
        image = compose(canvas, painted)
        if soft:
            image = softened(np.random.default_rng(grain), image)
        components = measure(image)
        if (violation(well_formed(components), spec) is None) != wanted:
            return None
        sides.append(LabelledImage.measured(image, components))
    return MinimalPair(spec, *sides)


def _sound_mask(rng: np.random.Generator, thing: Thing, library: OutlineLibrary | None) -> tuple[np.ndarray, int, int]:
    quality = Quality.NARROW if rng.random() < 0.3 else Quality.GOOD
    found = outline(rng, thing, library, quality) if rng.random() < 0.8 else None
    return found or coverage(thing)


def _changed(
    rng: np.random.Generator, flaw: str, objects: Sequence[PaintedObject], victim: int, library: OutlineLibrary | None
) -> dict[int, PaintedObject] | None:
    """Objects of the wrong image that differ from the right one's, by index; None where the flaw is not possible."""
    second = (victim + 1) % len(objects)
    one, other = objects[victim], objects[second]
    match flaw:
        case "near outline":
            quality = Quality.NEAR if rng.random() < 0.7 else Quality.BAD
            return {victim: replace(one, mask=outline(rng, one.thing, library, quality) or blended(rng, one.thing))}
        case "mixed colours":
            return {victim: replace(one, mix=ColourMix.random(rng, one.thing.colour))}
        case "stretched":
            return {victim: replace(one, mask=stretched(rng, one.thing, one.mask))}
        case "malformed":
            return {victim: replace(one, mask=malformed(rng, one.thing))}
        case "merged" if len(objects) > 1:  # moved towards another until the two touch
            share = rng.uniform(0.3, 0.6)
            down, right = round(share * (other.thing.y - one.thing.y)), round(share * (other.thing.x - one.thing.x))
            alpha, top, left = one.mask
            return {victim: replace(one, mask=(alpha, top + down, left + right))}
        case "another shape":
            thing = reshaped(rng, one.thing)
            return {victim: replace(one, mask=outline(rng, thing, library, Quality.GOOD) or coverage(thing))}
        case "swapped colours" if one.thing.colour != other.thing.colour:
            return {victim: _coloured(one, other.thing.colour), second: _coloured(other, one.thing.colour)}
        case "swapped places" if len(objects) > 1:
            return {victim: _moved(one, other.thing), second: _moved(other, one.thing)}
    return None


def _coloured(one: PaintedObject, colour: str) -> PaintedObject:
    return replace(one, thing=replace(one.thing, colour=colour))


def _moved(one: PaintedObject, to: Thing) -> PaintedObject:
    down, right = to.y - one.thing.y, to.x - one.thing.x
    alpha, top, left = one.mask
    return replace(one, thing=replace(one.thing, x=to.x, y=to.y), mask=(alpha, top + round(down), left + round(right)))
