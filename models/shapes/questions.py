"""Random scenes and yes/no questions on images of the shapes world: near misses, malformed objects, soft images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bestofn.models.shapes.prompts import COUNT_WORD, PromptSpec, counted, held_out, pair, single
from bestofn.models.shapes.rules import Found, relations, violation
from bestofn.models.shapes.scenes import INVERSE, RELATIONS, Wish, place, sample_wish, trainable
from bestofn.models.shapes.world import (
    CANVAS,
    COLOURS,
    MAX_TILT,
    SHAPES,
    FloatArray,
    Image,
    Mask,
    Scene,
    Thing,
    coverage,
)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def random_scene(rng: np.random.Generator) -> Scene:
    """Half as the generator is trained, half with mixed objects and any layout, as a weak generator draws them."""
    if rng.random() < 0.5:
        return place(rng, sample_wish(rng))
    while True:
        count = int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.35, 0.25, 0.2, 0.1]))
        main, colour = _pick(rng, SHAPES), _pick(rng, COLOURS)
        shapes = tuple(main if rng.random() < 0.45 else _pick(rng, SHAPES) for _ in range(count))
        colours = tuple(colour if rng.random() < 0.35 else _pick(rng, COLOURS) for _ in range(count))
        if not trainable(Wish(shapes, colours)):
            continue
        things: list[Thing] = []
        for shape, paint in zip(shapes, colours, strict=True):
            for _ in range(12):
                size = float(rng.uniform(14, 26 if count < 3 else 20))
                x, y = rng.uniform(size / 2 + 1, CANVAS - size / 2 - 1, 2)
                if all(max(abs(x - t.x), abs(y - t.y)) > (size + t.size) / 2 + 1 for t in things):
                    things.append(Thing(shape, paint, float(x), float(y), size, float(rng.uniform(-1, 1) * MAX_TILT)))
                    break
        pairs = [(a, b) for a in things for b in things if a is not b]
        placed = [(a, r, b) for a, b in pairs for r in relations(drawn_object(a), drawn_object(b))]
        if things and all(trainable(Wish((a.shape, b.shape), (a.colour, b.colour), r)) for a, r, b in placed):
            return Scene(tuple(things), int(rng.integers(2**31)))


def drawn_object(thing: Thing) -> Found:
    """The object that a thing is meant to be."""
    return Found(thing.shape, thing.colour, thing.box)


def malformed(rng: np.random.Generator, thing: Thing) -> Mask:
    """A coverage that is none of the shapes: two shapes mixed, a part bitten off, a gash, or lumps."""
    alpha, top, left = coverage(thing)
    h, w = alpha.shape
    y, x = np.mgrid[:h, :w].astype(np.float32)
    cx, cy, half = thing.x - left - 0.5, thing.y - top - 0.5, thing.size / 2
    turn = rng.uniform(0, 2 * np.pi)
    across = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
    kind = rng.random()
    if kind < 0.4:
        others = [shape for shape in SHAPES if shape != thing.shape]
        other = coverage(Thing(_pick(rng, others), thing.colour, thing.x, thing.y, thing.size, thing.tilt))[0]
        cut = np.clip(across + 0.5, 0, 1)
        mixed: FloatArray = alpha * cut + other * (1 - cut) if rng.random() < 0.7 else 0.5 * (alpha + other)
    elif kind < 0.65:
        mixed = alpha * np.clip(across + rng.uniform(-0.05, 0.25) * half, 0, 1)
    elif kind < 0.8:
        mixed = alpha * np.clip(np.abs(across + rng.uniform(-0.2, 0.2) * half) - 0.16 * half, 0, 1)
    else:
        lumps = np.zeros_like(alpha)
        for _ in range(int(rng.integers(2, 5))):
            bx, by = rng.uniform(-0.55, 0.55, 2) * half
            radius = rng.uniform(0.3, 0.55) * half
            lumps = np.maximum(lumps, np.clip(radius - np.hypot(x - cx - bx, y - cy - by), 0, 1))
        mixed = lumps
    return np.asarray(mixed, np.float32), top, left


def softened(rng: np.random.Generator, image: Image) -> Image:
    """A little blur and grain, as an autoencoder leaves behind."""
    out = image.astype(np.float32)
    if rng.random() < 0.5:
        share = rng.uniform(0.1, 0.7)
        padded = np.pad(out, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        blurred = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
        out += share * (blurred - out)
    out += rng.normal(0, rng.uniform(0, 4), out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def true_prompt(rng: np.random.Generator, found: Sequence[Found]) -> PromptSpec:
    """A prompt that describes some of the objects, of a random category that fits them."""
    a = found[int(rng.integers(len(found)))]
    same = [f for f in found if f.shape == a.shape]
    others = [f for f in found if f.shape != a.shape]
    if len(same) in COUNT_WORD and rng.random() < (0.7 if len(same) > 2 or not others else 0.35):
        alike = len({f.colour for f in same}) == 1
        return counted(a.shape, len(same), a.colour if alike and rng.random() < 0.4 else None)
    if not others or rng.random() < 0.2:
        return single(a.shape, a.colour if rng.random() < 0.7 else None)
    b = others[int(rng.integers(len(others)))]
    both = (a.colour, b.colour)
    known = sorted(relations(a, b))
    draw = rng.random()
    if not known or draw < 0.35:
        return pair(a.shape, b.shape, both if draw < 0.22 else None)
    return pair(a.shape, b.shape, both if draw < 0.6 else None, known[int(rng.integers(len(known)))])


def twisted(rng: np.random.Generator, spec: PromptSpec) -> PromptSpec:
    """The prompt with one thing changed: a count, a relation, a colour, a shape, or two colours or shapes swapped."""

    def other(words: Sequence[str], not_this: str | None) -> str:
        return _pick(rng, [word for word in words if word != not_this])

    last = spec.include[-1]
    if spec.exclude:
        draw = rng.random()
        near = [n for n in (last.count - 1, last.count + 1) if n in COUNT_WORD]
        if draw < 0.65:
            return counted(last.shape, near[int(rng.integers(len(near)))], last.colour)
        if last.colour and draw < 0.85:
            return counted(last.shape, last.count, other(COLOURS, last.colour))
        return counted(other(SHAPES, last.shape), last.count, last.colour)
    if len(spec.include) == 1:
        if last.colour and rng.random() < 0.6:
            return single(last.shape, other(COLOURS, last.colour))
        return single(other(SHAPES, last.shape), last.colour)
    first, second = (spec.include[1], spec.include[0]) if last.position else spec.include
    relation = last.position[0] if last.position else None
    both = (first.colour, second.colour) if first.colour and second.colour else None
    a, b = first.shape, second.shape
    moves = ["shape"] + (["colour", "swap colours"] if both else []) + (["flip", "turn"] if relation else [])
    move = _pick(rng, moves)
    if move == "shape":
        wrong = _pick(rng, [s for s in SHAPES if s not in (a, b)])
        a, b = (wrong, b) if rng.random() < 0.5 else (a, wrong)
    elif move == "colour" and both:
        k = int(rng.integers(2))
        wrong = other(COLOURS, both[k])
        both = (wrong, both[1]) if k == 0 else (both[0], wrong)
    elif move == "swap colours" and both:
        both = (both[1], both[0])
    elif move == "flip" and relation:
        relation = INVERSE[relation]
    elif move == "turn":
        relation = other(RELATIONS, relation)
    return pair(a, b, both, relation)


def sample_questions(
    rng: np.random.Generator, found: Sequence[Found], drawn: Sequence[Found], n_questions: int
) -> list[tuple[PromptSpec, bool]]:
    """Up to `n_questions` prompts on one image, each with whether the image satisfies it; about half of them do.

    No prompt names a combination that is held out of training, whatever its answer.

    Args:
        rng: source of the choice.
        found: well-formed objects of the image, by which prompts are answered.
        drawn: objects that the image was meant to show, malformed ones included.
        n_questions: number of prompts; fewer come back where the objects allow no more.
    """
    out: list[tuple[PromptSpec, bool]] = []
    if not found and not drawn:
        return out
    want = rng.random() < 0.5
    for _ in range(10 * n_questions):
        if len(out) == n_questions:
            break
        described = drawn if drawn and (not found or rng.random() < 0.5) else found
        spec = true_prompt(rng, described)
        if rng.random() < (0.1 if want else 0.6):
            spec = twisted(rng, spec)
        answer = violation(found, spec) is None
        if not held_out(spec) and (answer == want or rng.random() < 0.1):
            out.append((spec, answer))
            want = rng.random() < 0.5
    return out
