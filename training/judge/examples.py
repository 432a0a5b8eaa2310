"""What a judge learns from: pictures with questions, descriptions and labelled cells, as tensors.

Letters: B pictures, S side, R rows of text (questions and descriptions), L their greatest length, K label maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bestofn.judge.preprocess import ImageMode
from bestofn.judge.prompting import Question

IGNORE = -100
"""Target of a position or a cell that teaches nothing."""

HINT = 0.3
"""What a hint counts, as a share of the answer."""


@dataclass(frozen=True)
class Asked:
    """A prompt on a picture and what is true of it.

    Attributes:
        prompt: as a user would write it.
        satisfied: whether the picture satisfies it.
        weight: how much the answer counts.
        hints: (word, truth): at so many words into the prompt, whether what was just named is there at all. Learning
            the steps of an answer is much quicker than learning the answer alone.
    """

    prompt: str
    satisfied: bool
    weight: float = 1.0
    hints: tuple[tuple[int, bool], ...] = ()


@dataclass(frozen=True)
class Lesson:
    """One picture and what is known about it.

    Attributes:
        picture: (S, S, 3) uint8.
        asked: questions with their answers.
        description: the objects in words from left to right, or None where nobody knows.
        cells: (K, h, w) label maps over the cells of the vision tower, or None.
    """

    picture: NDArray[np.uint8]
    asked: tuple[Asked, ...]
    description: str | None = None
    cells: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Batch:
    """Lessons as tensors. Every row of text follows the same head: the picture's tokens and a newline.

    Attributes:
        pixels: (B, 3, S, S).
        owner: (R,) the picture that a row is about.
        ids: (R, L) what follows the head, padded at the end.
        targets: (R, L) the token to be predicted at each position, mostly IGNORE.
        weights: (R, L) what each target counts.
        answers: (R,) whether the row is a question, not a description.
        cells: (B, K, h, w), IGNORE where unknown.
    """

    pixels: Tensor
    owner: Tensor
    ids: Tensor
    targets: Tensor
    weights: Tensor
    answers: Tensor
    cells: Tensor


class Collator:
    """Makes batches for one model whose question begins with the prompt, so that hints have a place.

    Texts are tokenised once and kept, as a small world repeats them.
    """

    def __init__(self, question: Question, image_mode: ImageMode, describe: str, grid: tuple[int, int, int]) -> None:
        self.question = question
        self.image_mode = image_mode
        self.describe = describe
        self.grid = grid
        tokenizer = question.tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.head = [*question.prefix, question.media_id, question.newline_id]
        self._kept: dict[str, list[int]] = {}

    def __call__(self, lessons: Sequence[Lesson]) -> Batch:
        """Tensors of some lessons; pictures must be S x S."""
        rows: list[tuple[int, list[int], dict[int, tuple[int, float]], bool]] = []
        cells = np.full((len(lessons), *self.grid), IGNORE, np.int64)
        for b, lesson in enumerate(lessons):
            for asked in lesson.asked:
                ids = self._asking(asked.prompt)
                wanted = {word - 1: (self._word(truth), HINT * asked.weight) for word, truth in asked.hints}
                rows.append((b, ids, wanted | {len(ids) - 1: (self._word(asked.satisfied), asked.weight)}, True))
            if lesson.description is not None:
                start = self._asking(None)
                words = [*self.question.tokenizer(lesson.description, add_special_tokens=False)["input_ids"], self.end]
                wanted = {len(start) - 1 + k: (word, 1.0) for k, word in enumerate(words)}
                rows.append((b, start + words[:-1], wanted, False))
            if lesson.cells is not None:
                cells[b] = lesson.cells
        L = max((len(ids) for _, ids, _, _ in rows), default=0)
        pad = self.question.newline_id
        targets, weights = torch.full((len(rows), L), IGNORE), torch.zeros(len(rows), L)
        for r, (_, _, wanted, _) in enumerate(rows):
            for place, (target, weight) in wanted.items():
                targets[r, place], weights[r, place] = target, weight
        pixels = self.image_mode.pixels(np.stack([lesson.picture for lesson in lessons]))
        return Batch(
            pixels=torch.from_numpy(pixels),
            owner=torch.tensor([b for b, *_ in rows], dtype=torch.long),
            ids=torch.tensor([ids + [pad] * (L - len(ids)) for _, ids, *_ in rows], dtype=torch.long),
            targets=targets,
            weights=weights,
            answers=torch.tensor([answer for *_, answer in rows], dtype=torch.bool),
            cells=torch.from_numpy(cells),
        )

    def _word(self, truth: bool) -> int:
        return self.question.yes_id if truth else self.question.no_id

    def _asking(self, prompt: str | None) -> list[int]:
        """Ids after the head up to the answer: of the question, or of the request to describe."""
        key = self.describe if prompt is None else prompt
        if key not in self._kept:
            text = self.describe if prompt is None else self.question.text.replace("{prompt}", prompt)
            self._kept[key] = self.question.conversation(text, 1)[len(self.head) :]
        return self._kept[key]
