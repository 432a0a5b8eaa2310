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
from bestofn.judge.question import Question

IGNORE = -100
"""Target of a position or a cell that teaches nothing."""


@dataclass(frozen=True)
class Asked:
    """A prompt on a picture, whether the picture satisfies it, and how much the answer counts."""

    prompt: str
    satisfied: bool
    weight: float = 1.0


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
        weights: (R,).
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
    """Makes batches for one model; texts are tokenised once and kept, as a small world repeats them."""

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
        rows: list[tuple[int, list[int], list[int], float, bool]] = []
        cells = np.full((len(lessons), *self.grid), IGNORE, np.int64)
        for b, lesson in enumerate(lessons):
            for asked in lesson.asked:
                ids = self._asking(asked.prompt)
                answer = self.question.yes_id if asked.satisfied else self.question.no_id
                rows.append((b, ids, [IGNORE] * (len(ids) - 1) + [answer], asked.weight, True))
            if lesson.description is not None:
                start = self._asking(None)
                words = [*self.question.tokenizer(lesson.description, add_special_tokens=False)["input_ids"], self.end]
                rows.append((b, start + words[:-1], [IGNORE] * (len(start) - 1) + words, 1.0, False))
            if lesson.cells is not None:
                cells[b] = lesson.cells
        L = max(len(ids) for _, ids, _, _, _ in rows)
        pad = self.question.newline_id
        pixels = self.image_mode.pixels(np.stack([lesson.picture for lesson in lessons]))
        return Batch(
            pixels=torch.from_numpy(pixels),
            owner=torch.tensor([b for b, *_ in rows]),
            ids=torch.tensor([ids + [pad] * (L - len(ids)) for _, ids, *_ in rows]),
            targets=torch.tensor([targets + [IGNORE] * (L - len(targets)) for _, _, targets, _, _ in rows]),
            weights=torch.tensor([weight for *_, weight, _ in rows]),
            answers=torch.tensor([answer for *_, answer in rows]),
            cells=torch.from_numpy(cells),
        )

    def _asking(self, prompt: str | None) -> list[int]:
        """Ids after the head up to the answer: of the question, or of the request to describe."""
        key = self.describe if prompt is None else prompt
        if key not in self._kept:
            text = self.describe if prompt is None else self.question.text.replace("{prompt}", prompt)
            self._kept[key] = self.question.conversation(text, 1)[len(self.head) :]
        return self._kept[key]
