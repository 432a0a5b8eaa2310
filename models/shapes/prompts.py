"""Prompts of the shapes world: GenEval's six categories, their metadata, captions for training and the benchmark."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bestofn.models.shapes.scenes import (
    COUNTS,
    HELD_COLOUR_SHAPES,
    HELD_COUNTS,
    HELD_RELATIONS,
    HELD_SHAPE_PAIRS,
    INVERSE,
    RELATIONS,
    Wish,
    trainable,
)
from bestofn.models.shapes.world import COLOURS, SHAPES

PREFIX = "a photo of"
PLURAL = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}
COUNT_WORD = {number: word for word, number in COUNTS.items()}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tags, in its order."""


@dataclass(frozen=True)
class Requirement:
    """GenEval's requirement: at least `count` of `shape`, in `colour`, each `position[0]` the object `position[1]`."""

    shape: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class PromptSpec:
    """One line of GenEval's metadata: the prompt and what an image must and must not show."""

    tag: str
    include: tuple[Requirement, ...]
    prompt: str
    exclude: tuple[Requirement, ...] = ()


def noun(shape: str, colour: str | None = None) -> str:
    """`a star`, `an orange star`."""
    words = f"{colour} {shape}" if colour else shape
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def single(shape: str, colour: str | None = None) -> PromptSpec:
    """`a photo of a ring`, `a photo of a blue square`."""
    tag = "colors" if colour else "single_object"
    return PromptSpec(tag, (Requirement(shape, 1, colour),), f"{PREFIX} {noun(shape, colour)}")


def counted(shape: str, count: int, colour: str | None = None) -> PromptSpec:
    """`a photo of three circles`, `a photo of three red circles`: exactly this number."""
    words = f"{COUNT_WORD[count]} {colour + ' ' if colour else ''}{PLURAL[shape]}"
    tag = "counting_color" if colour else "counting"
    return PromptSpec(tag, (Requirement(shape, count, colour),), f"{PREFIX} {words}", (Requirement(shape, count + 1),))


def pair(first: str, second: str, colours: tuple[str, str] | None = None, relation: str | None = None) -> PromptSpec:
    """Two objects: with a colour each, with a relation of the first to the second, with both, or with neither."""
    a, b = colours or (None, None)
    prompt = f"{PREFIX} {noun(first, a)} {relation or 'and'} {noun(second, b)}"
    if relation:
        tag = "position_color" if colours else "position"
        return PromptSpec(tag, (Requirement(second, 1, b), Requirement(first, 1, a, (relation, 0))), prompt)
    tag = "color_attr" if colours else "two_object"
    return PromptSpec(tag, (Requirement(first, 1, a), Requirement(second, 1, b)), prompt)


def known_words() -> frozenset[str]:
    """Every word that some prompt of this world uses; other words reach the generator as "unknown"."""
    words = {"a", "an", "photo", "of", "and", *COLOURS, *SHAPES, *PLURAL.values(), *COUNTS}
    return frozenset(words.union(*(relation.split() for relation in RELATIONS)))


def caption(rng: np.random.Generator, wish: Wish) -> PromptSpec:
    """A true description of a training scene; half name every colour in it."""
    shapes, colours = wish.shapes, wish.colours
    draw = rng.random()
    if len(shapes) == 1:
        return single(shapes[0], colours[0] if draw < 0.75 else None)
    if len(set(shapes)) == 1 and (len(shapes) > 2 or len(set(colours)) == 1 or draw < 0.4):
        same = len(set(colours)) == 1
        return counted(shapes[0], len(shapes), colours[0] if same and draw < 0.65 else None)
    relation = wish.relation or "left of"
    first, second = 0, 1
    if rng.random() < 0.5:
        first, second, relation = 1, 0, INVERSE[relation]
    a, b, both = shapes[first], shapes[second], (colours[first], colours[second])
    if a == b or draw < 0.34:
        return pair(a, b, both, relation)
    if draw < 0.54:
        return pair(a, b, both)
    return pair(a, b, None, relation) if draw < 0.74 else pair(a, b)


def sample_prompt(rng: np.random.Generator, tag: str, with_held_out: bool = False) -> PromptSpec:
    """A random prompt of one category from the combinations that training may show, or from all."""

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    while True:
        a, b, relation = pick(SHAPES), pick(SHAPES), pick(RELATIONS)
        both = (pick(COLOURS), pick(COLOURS))
        count = int(rng.integers(2, 5))
        spec = {
            "single_object": single(a),
            "colors": single(a, both[0]),
            "counting": counted(a, count),
            "counting_color": counted(a, count, both[0]),
            "two_object": pair(a, b),
            "color_attr": pair(a, b, both),
            "position": pair(a, b, None, relation),
            "position_color": pair(a, b, both, relation),
        }[tag]
        if len(spec.include) == 2 and a == b:
            continue
        if with_held_out or not held_out(spec):
            return spec


def held_out(spec: PromptSpec) -> bool:
    """Whether the prompt names a combination that no training scene shows."""
    shapes = tuple(r.shape for r in spec.include for _ in range(r.count))
    named = {(r.colour, r.shape) for r in spec.include if r.colour}
    relation = next((INVERSE[r.position[0]] for r in spec.include if r.position), None)
    # Unnamed colours are free, so they are not held out: they match any colour trained with the shape.
    free = {shape: next(c for c in COLOURS if (c, shape) not in HELD_COLOUR_SHAPES) for shape in shapes}
    colours = tuple(free[shape] for shape in shapes)
    return bool(HELD_COLOUR_SHAPES & named) or not trainable(Wish(shapes, colours, relation))


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt of the benchmark with the first of its noise seeds."""

    spec: PromptSpec
    seed: int
    held_out: bool


PER_CATEGORY = 40
SEED_STRIDE = 10_000


def benchmark_prompts() -> tuple[BenchmarkPrompt, ...]:
    """The fixed benchmark: 40 prompts a category, 76 of the 240 with combinations that were never trained on.

    Categories with fewer distinct prompts repeat them; every entry has noise seeds of its own.
    """
    rng = np.random.default_rng(240)
    held: dict[str, list[PromptSpec]] = {tag: [] for tag in CATEGORIES}
    for colour, shape in sorted(HELD_COLOUR_SHAPES):
        held["colors"] += [single(shape, colour)] * 2
        for _ in range(2):
            while True:
                other = sample_prompt(rng, "colors").include[0]
                if other.colour and other.shape != shape and frozenset({shape, other.shape}) not in HELD_SHAPE_PAIRS:
                    break
            held["color_attr"].append(pair(shape, other.shape, (colour, other.colour)))
    for a, b in sorted(sorted(kinds) for kinds in HELD_SHAPE_PAIRS):
        held["two_object"] += [pair(a, b), pair(b, a)] * 2
    for count, shape in sorted(HELD_COUNTS):
        held["counting"] += [counted(shape, count)] * 3
    for first, relation, second in sorted(HELD_RELATIONS):
        held["position"].append(pair(first, second, None, relation))
    for first, relation, second in sorted(HELD_RELATIONS)[::3]:
        held["position"].append(pair(second, first, None, INVERSE[relation]))
    out: list[BenchmarkPrompt] = []
    for tag in CATEGORIES:
        specs = list(held[tag])
        if tag == "single_object":
            specs = [single(shape) for shape in SHAPES] * (PER_CATEGORY // len(SHAPES))
        seen = {spec.prompt for spec in specs}
        while len(specs) < PER_CATEGORY:
            spec = sample_prompt(rng, tag)
            if spec.prompt not in seen or (tag == "counting" and len(seen) >= 24):
                specs.append(spec)
                seen.add(spec.prompt)
        out += [BenchmarkPrompt(spec, SEED_STRIDE * (len(out) + k), held_out(spec)) for k, spec in enumerate(specs)]
    return tuple(out)


CALIBRATION_SEED = 2**41
"""First noise seed of the calibration prompts, far from those of benchmark and training."""


def calibration_prompts(trained: Collection[str] = ()) -> tuple[BenchmarkPrompt, ...]:
    """Prompts that a judge's probabilities are fitted on: 40 a category, of all combinations, as callers send them.

    None is a prompt of its training, on whose images it is surer than on others. Three categories then have too few
    distinct prompts to avoid those of the benchmark; noise seeds always differ.

    Args:
        trained: prompts of the judge's training.
    """
    rng = np.random.default_rng(CALIBRATION_SEED)
    seen = {one.spec.prompt for one in benchmark_prompts()}
    out: list[BenchmarkPrompt] = []
    for tag in CATEGORIES:
        for _ in range(PER_CATEGORY):
            drawn = [sample_prompt(rng, tag, with_held_out=True) for _ in range(200)]
            fresh = [spec for spec in drawn if spec.prompt not in trained]
            spec = next((spec for spec in fresh if spec.prompt not in seen), fresh[0])
            seen.add(spec.prompt)
            out.append(BenchmarkPrompt(spec, CALIBRATION_SEED + SEED_STRIDE * len(out), held_out(spec)))
    return tuple(out)
