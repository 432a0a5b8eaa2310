"""Held-out scores of a judge in training: right answers on scenes, choice and ranking among generated images.

Axes: P prompts, S images of a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.models.shapes.prompts import PromptSpec
from bestofn.training.judge.dataset import PromptGroup, category
from bestofn.training.judge.examples import Collator, ImageExample, QuestionExample
from bestofn.training.judge.image_pool import Images
from bestofn.training.judge.loop import JudgeTrainingModel

IMAGES_AT_ONCE = 48


@torch.inference_mode()
def answer_margins(model: JudgeTrainingModel, collate: Collator, examples: Sequence[ImageExample]) -> list[float]:
    """Log-odds of yes for every question of the examples, in order."""
    model.eval()
    out: list[float] = []
    yes, no = collate.question.yes_id, collate.question.no_id
    for start in range(0, len(examples), IMAGES_AT_ONCE):
        bare = [
            ImageExample(one.image, tuple(QuestionExample(q.prompt, q.satisfied) for q in one.questions))
            for one in examples[start : start + IMAGES_AT_ONCE]
        ]
        logits, _ = model(collate(bare), collate.head)
        out += (logits[:, yes] - logits[:, no]).tolist()
    return out


def image_margins(
    model: JudgeTrainingModel, collate: Collator, images: Images, specs: Sequence[PromptSpec]
) -> NDArray[np.float64]:
    """Log-odds of yes for images (B, S, S, 3), each with its own prompt.  # (B,)"""
    asked = [
        ImageExample(image, (QuestionExample(spec.prompt, False),)) for image, spec in zip(images, specs, strict=True)
    ]
    return np.array(answer_margins(model, collate, asked))


def scene_score(model: JudgeTrainingModel, collate: Collator, examples: Sequence[ImageExample]) -> dict[str, float]:
    """Share of right answers: of all questions as "accuracy", and by category."""
    right: dict[str, list[bool]] = defaultdict(list)
    questions = [question for example in examples for question in example.questions]
    for question, margin in zip(questions, answer_margins(model, collate, examples), strict=True):
        right[category(question.prompt)].append((margin > 0) == question.satisfied)
    every = [ok for oks in right.values() for ok in oks]
    return {"accuracy": float(np.mean(every))} | {name: float(np.mean(oks)) for name, oks in sorted(right.items())}


def choice_score(model: JudgeTrainingModel, collate: Collator, groups: Sequence[PromptGroup]) -> dict[str, float]:
    """Choice and ranking among the generated images of held-out prompts, the same number of each.

    Returns:
        "sample", the share of right images. "chosen", the share of prompts whose chosen image is right. "oracle", the
        share of prompts with a right image. "auc", see `within_prompt_auc`.
    """
    images = np.stack([one.labelled.image for group in groups for one in group])
    specs = [one.spec for group in groups for one in group]
    margins = image_margins(model, collate, images, specs).reshape(len(groups), -1)  # (P, S)
    correct = np.array([[one.correct for one in group] for group in groups])  # (P, S)
    return {
        "sample": float(correct.mean()),
        "chosen": float(correct[np.arange(len(correct)), margins.argmax(1)].mean()),
        "oracle": float(correct.any(1).mean()),
        "auc": within_prompt_auc(correct, margins),
    }


def within_prompt_auc(correct: NDArray[np.bool_], margins: NDArray[np.float64]) -> float:
    """Probability that a right image outranks a wrong one of its prompt, averaged over prompts with both; (P, S)."""
    values = []
    for right, scores in zip(correct, margins, strict=True):
        if right.any() and not right.all():
            difference = scores[right][:, None] - scores[~right][None, :]
            values.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return float(np.mean(values)) if values else float("nan")
