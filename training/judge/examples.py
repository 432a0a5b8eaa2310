"""Training examples of a judge, images with questions, descriptions and label maps, and their tensors.

Axes: B images, S side, R rows of text (questions and descriptions), L their greatest length, K label maps.
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
"""Target of a position or a cell that takes no part in the loss."""

NO_GROUP = -1

AUXILIARY_WEIGHT = 0.3
"""Weight of an auxiliary target, as a share of the answer's."""


@dataclass(frozen=True)
class QuestionExample:
    """A prompt about an image, with the right answer.

    Attributes:
        prompt: text of a user's prompt.
        satisfied: whether the image satisfies it.
        weight: weight of the answer in the loss.
        auxiliary_targets: (number of words, truth) pairs: whether the image agrees with that many words of the prompt,
            a name or a relation. Intermediate steps make the answer much quicker to learn.
        group: ranking group; questions of one group have the same prompt and are ranked against each other. None for
            a question outside any group.
    """

    prompt: str
    satisfied: bool
    weight: float = 1.0
    auxiliary_targets: tuple[tuple[int, bool], ...] = ()
    group: int | None = None


@dataclass(frozen=True, eq=False)
class ImageExample:
    """One image and what is known about it.

    Attributes:
        image: (S, S, 3) uint8.
        questions: questions with their answers.
        description: the objects in words from left to right, or None.
        cells: (K, h, w) label maps over the cells of the vision tower, or None.
    """

    image: NDArray[np.uint8]
    questions: tuple[QuestionExample, ...]
    description: str | None = None
    cells: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Batch:
    """Image examples as tensors. Every row of text follows the same head: the image's tokens and a newline.

    Attributes:
        pixels: (B, 3, S, S).
        owner: (R,), index of the image that a row is about.
        ids: (R, L), token ids after the head, padded at the end.
        targets: (R, L), token to predict at each position, mostly IGNORE.
        weights: (R, L), weight of each target.
        questions: (R,), True for a question, False for a description.
        answer_position: (R,), position of a question's answer; 0 for a description.
        satisfied: (R,), right answer of a question.
        groups: (R,), ranking group, NO_GROUP without one.
        cells: (B, K, h, w), IGNORE where unknown.
    """

    pixels: Tensor
    owner: Tensor
    ids: Tensor
    targets: Tensor
    weights: Tensor
    questions: Tensor
    answer_position: Tensor
    satisfied: Tensor
    groups: Tensor
    cells: Tensor


@dataclass(frozen=True)
class _Row:
    owner: int
    ids: list[int]
    targets: dict[int, tuple[int, float]]
    question: QuestionExample | None


class Collator:
    """Makes batches for one model whose question begins with the prompt, so that auxiliary targets have a position.

    Tokenised texts are cached: the prompts of a small world repeat.
    """

    def __init__(self, question: Question, image_mode: ImageMode, describe: str, grid: tuple[int, int, int]) -> None:
        self.question = question
        self.image_mode = image_mode
        self.describe = describe
        self.grid = grid
        tokenizer = question.tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.head = [*question.prefix, question.media_id, question.newline_id]
        self._tokenised: dict[str, list[int]] = {}

    def __call__(self, examples: Sequence[ImageExample]) -> Batch:
        """Tensors of the examples, whose images are S x S."""
        rows: list[_Row] = []
        cells = np.full((len(examples), *self.grid), IGNORE, np.int64)
        for b, example in enumerate(examples):
            rows += [self._question_row(b, question) for question in example.questions]
            if example.description is not None:
                rows.append(self._description_row(b, example.description))
            if example.cells is not None:
                cells[b] = example.cells
        L = max((len(row.ids) for row in rows), default=0)
        pad = self.question.newline_id
        targets, weights = torch.full((len(rows), L), IGNORE), torch.zeros(len(rows), L)
        for r, row in enumerate(rows):
            for position, (target, weight) in row.targets.items():
                targets[r, position], weights[r, position] = target, weight
        questions = [row.question for row in rows]
        pixels = self.image_mode.pixels(np.stack([example.image for example in examples]))
        return Batch(
            pixels=torch.from_numpy(pixels),
            owner=torch.tensor([row.owner for row in rows], dtype=torch.long),
            ids=torch.tensor([row.ids + [pad] * (L - len(row.ids)) for row in rows], dtype=torch.long),
            targets=targets,
            weights=weights,
            questions=torch.tensor([q is not None for q in questions], dtype=torch.bool),
            answer_position=torch.tensor([len(row.ids) - 1 if row.question else 0 for row in rows], dtype=torch.long),
            satisfied=torch.tensor([q is not None and q.satisfied for q in questions], dtype=torch.bool),
            groups=torch.tensor(
                [NO_GROUP if q is None or q.group is None else q.group for q in questions], dtype=torch.long
            ),
            cells=torch.from_numpy(cells),
        )

    def _question_row(self, owner: int, question: QuestionExample) -> _Row:
        ids = self._ids(question.prompt)
        targets = {
            words - 1: (self._answer(truth), AUXILIARY_WEIGHT * question.weight)
            for words, truth in question.auxiliary_targets
        }
        targets[len(ids) - 1] = (self._answer(question.satisfied), question.weight)
        return _Row(owner, ids, targets, question)

    def _description_row(self, owner: int, description: str) -> _Row:
        start = self._ids(None)
        words = [*self.question.tokenizer(description, add_special_tokens=False)["input_ids"], self.end]
        targets = {len(start) - 1 + k: (word, 1.0) for k, word in enumerate(words)}
        return _Row(owner, start + words[:-1], targets, None)

    def _answer(self, truth: bool) -> int:
        return self.question.yes_id if truth else self.question.no_id

    def _ids(self, prompt: str | None) -> list[int]:
        """Ids after the head up to the answer: of the question, or of the request to describe."""
        key = self.describe if prompt is None else prompt
        if key not in self._tokenised:
            text = self.describe if prompt is None else self.question.text.replace("{prompt}", prompt)
            self._tokenised[key] = self.question.conversation(text, 1)[len(self.head) :]
        return self._tokenised[key]
