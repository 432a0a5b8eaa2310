"""Yes/no questions on rendered scenes with hard negatives and malformed objects: what a judge of shapes learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bestofn.models.shapes.prompts import COUNT_WORD, PromptSpec, counted, pair, single
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
    label_maps,
    render,
)

MALFORMED = len(SHAPES) + 1
"""Shape label of an object that is no shape; 0 is background, 1 + index a shape."""


@dataclass(frozen=True)
class ImageQuestions:
    """An image, questions on it, and labels for auxiliary losses."""

    image: Image  # (64, 64, 3)
    questions: list[tuple[str, bool]]
    objects: list[tuple[str, str, tuple[float, float, float, float]]]  # left to right; a malformed one is "malformed"
    label_map_shape: NDArray[np.int64]  # (8, 8), 0..MALFORMED
    label_map_colour: NDArray[np.int64]  # (8, 8), 0..len(COLOURS)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _scene(rng: np.random.Generator) -> Scene:
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
        pairs = [(a, r, b) for a in things for b in things if a is not b for r in relations(_found(a), _found(b))]
        if things and all(trainable(Wish((a.shape, b.shape), (a.colour, b.colour), r)) for a, r, b in pairs):
            return Scene(tuple(things), int(rng.integers(2**31)))


def _found(thing: Thing) -> Found:
    return Found(thing.shape, thing.colour, thing.box)


def _malform(rng: np.random.Generator, thing: Thing) -> Mask:
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


def _softened(rng: np.random.Generator, image: Image) -> Image:
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


def sample_questions(rng: np.random.Generator, n_questions: int) -> ImageQuestions:
    """An image with `n_questions` (prompt, answer) pairs, about half of them yes; answers follow GenEval's rules.

    A malformed object is no shape: a prompt that needs it is answered no, and none is asked that only holds because
    it is missing. Scenes show no combination that is held out of training; questions may name them.
    """
    scene = _scene(rng)
    share = 0.5 if rng.random() < 0.35 else 0.0
    masks = {k: _malform(rng, t) for k, t in enumerate(scene.things) if rng.random() < share}
    image = _softened(rng, render(scene, masks))
    drawn = [_found(thing) for thing in scene.things]
    sound = [f for k, f in enumerate(drawn) if k not in masks]
    questions: list[tuple[str, bool]] = []
    while len(questions) < n_questions:
        want = rng.random() < 0.5
        spec = true_prompt(rng, sound if sound and (want or rng.random() < 0.5) else drawn)
        if not want and (not masks or rng.random() < 0.5):
            spec = twisted(rng, spec)
        answer = violation(sound, spec) is None
        if answer and violation(drawn, spec) is not None:
            continue
        if answer == want or rng.random() < 0.1:
            questions.append((spec.prompt, answer))
    shapes, colours = label_maps(scene)
    for k in masks:
        thing = scene.things[k]
        alone = label_maps(Scene((thing,), 0))[0] > 0
        shapes[alone & (shapes == 1 + SHAPES.index(thing.shape))] = MALFORMED
    named = [("malformed" if k in masks else t.shape, t.colour, t.box) for k, t in enumerate(scene.things)]
    named.sort(key=lambda item: item[2][0] + item[2][2])
    return ImageQuestions(image, questions, named, shapes, colours)
