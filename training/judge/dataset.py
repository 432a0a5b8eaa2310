"""Lessons for the shapes judge from the shapes world: the one place where judge and world meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bestofn.models.shapes.evaluator import detect
from bestofn.models.shapes.prompts import PLURAL, PromptSpec, held_out, known_words
from bestofn.models.shapes.questions import MALFORMED, sample_questions, true_prompt, twisted
from bestofn.models.shapes.rules import Found, violation
from bestofn.models.shapes.world import CANVAS, CELL, COLOURS, SHAPES
from bestofn.training.judge.examples import Asked, Lesson

QUESTION = "{prompt}"
"""The embedded judge is asked the bare prompt: every further word would cost as much as a word of it."""

MALFORMED_WORD = "malformed"

CLASSES = (MALFORMED + 1, len(COLOURS) + 1)
"""Labels of a cell: its shape, its colour."""

GRID = (len(CLASSES), CANVAS // CELL, CANVAS // CELL)

_COUNT = re.compile(r"\b(two|three|four|five)\b")
_RELATION = re.compile(r"\b(left|right|above|below)\b")
_SINGULAR = {plural: shape for shape, plural in PLURAL.items()}
_NAMED = re.compile(rf"(?:\b({'|'.join(COLOURS)}) )?\b({'|'.join((*SHAPES, *_SINGULAR))})\b")
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")


def words() -> list[str]:
    """What the judge's tokenizer must know: the world's words and those of its descriptions."""
    return sorted({*known_words(), MALFORMED_WORD})


def category(prompt: str) -> str:
    """GenEval's category of a prompt of the world; a position or a count with colours has one of its own."""
    coloured = bool(_COLOUR.search(prompt))
    if _COUNT.search(prompt):
        return "counting_color" if coloured else "counting"
    if _RELATION.search(prompt):
        return "position_color" if coloured else "position"
    if " and " in prompt:
        return "color_attr" if coloured else "two_object"
    return "colors" if coloured else "single_object"


def importance(prompt: str) -> float:
    """What a question counts: relations and numbers, the last things to be learned, double."""
    return 2.0 if category(prompt).startswith(("position", "counting")) else 1.0


def hints(prompt: str, objects: Iterable[tuple[str, str]]) -> tuple[tuple[int, bool], ...]:
    """Where each object of a prompt has been named, in words, and whether one like it is among (shape, colour)."""
    there = list(objects)
    out = []
    for named in _NAMED.finditer(prompt):
        colour, word = named.groups()
        shape = _SINGULAR.get(word, word)
        seen = any(s == shape and colour in (None, c) for s, c in there)
        out.append((len(prompt[: named.end()].split()), seen))
    return tuple(out)


def rendered(rng: np.random.Generator, questions: int) -> Lesson:
    """A rendered scene with its questions, its objects in words from left to right, and its labelled cells."""
    scene = sample_questions(rng, questions)
    described = [f"{colour} {shape if shape != 'malformed' else MALFORMED_WORD}" for shape, colour, _ in scene.objects]
    return Lesson(
        picture=scene.image,
        asked=tuple(
            Asked(prompt, answer, importance(prompt), hints(prompt, ((o[0], o[1]) for o in scene.objects)))
            for prompt, answer in scene.questions
        ),
        description=" ".join(described),
        cells=np.stack([scene.label_map_shape, scene.label_map_colour]),
    )


@dataclass(frozen=True)
class Generated:
    """A generator's picture, the prompt it was made for, and the well-formed objects that the evaluator finds."""

    picture: NDArray[np.uint8]
    spec: PromptSpec
    found: tuple[Found, ...]

    @classmethod
    def of(cls, picture: NDArray[np.uint8], spec: PromptSpec) -> Generated:
        """Looks at a picture (64, 64, 3)."""
        return cls(picture, spec, detect(picture))

    @property
    def correct(self) -> bool:
        """Whether the picture shows what it was made for."""
        return violation(self.found, self.spec) is None

    def lesson(self, rng: np.random.Generator, questions: int) -> Lesson:
        """The picture with its own prompt, which counts twice, and with others, true ones and nearly true ones.

        A combination that the generator is never trained on is not confirmed here either.
        """
        there = [(f.shape, f.colour) for f in self.found]
        asked = [
            Asked(self.spec.prompt, self.correct, 2 * importance(self.spec.prompt), hints(self.spec.prompt, there))
        ]
        while len(asked) < questions:
            spec = true_prompt(rng, self.found) if self.found and rng.random() < 0.75 else self.spec
            if rng.random() < 0.5:
                spec = twisted(rng, spec)
            answer = violation(self.found, spec) is None
            if not (answer and held_out(spec)):
                asked.append(Asked(spec.prompt, answer, importance(spec.prompt), hints(spec.prompt, there)))
        return Lesson(self.picture, tuple(asked))


def batches(
    seed: int,
    pictures: int,
    questions: int,
    looking: int = 0,
    pool: Sequence[Generated] = (),
    share: float = 0.0,
) -> Callable[[int], list[Lesson]]:
    """The batch of a step, which depends on the seed and the step alone.

    Args:
        seed: of the stream.
        pictures: a batch.
        questions: a picture.
        looking: first steps in which twice as many pictures come without a word, to teach the vision tower alone.
        pool: a generator's pictures.
        share: of them in a batch; the rest is rendered.
    """
    made = round(share * pictures) if pool else 0

    def batch(step: int) -> list[Lesson]:
        rng = np.random.default_rng((seed, step))
        if step < looking:
            return [replace(rendered(rng, 0), description=None) for _ in range(2 * pictures)]
        picks = rng.integers(len(pool), size=made) if made else ()
        lessons = [pool[k].lesson(rng, questions) for k in picks]
        return lessons + [rendered(rng, questions) for _ in range(pictures - made)]

    return batch


def unseen(pictures: int, questions: int = 8) -> list[Lesson]:
    """Rendered scenes for scoring, from a stream that no training seed draws from."""
    rng = np.random.default_rng((2**63 - 1, 0))
    return [rendered(rng, questions) for _ in range(pictures)]
