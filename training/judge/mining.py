"""Adversarial mining: of many images of a prompt, those that a judge ranks high and a few that are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.weight_files import whole_file
from bestofn.training.judge.examples import Collator
from bestofn.training.judge.image_pool import PoolImages
from bestofn.training.judge.loop import JudgeTrainingModel
from bestofn.training.judge.scoring import image_margins
from bestofn.training.runs import Progress

TOP, WRONG_AMONG, OTHER_RIGHT = 4, 16, 2


def hard_images(margins: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[int]:
    """Indices of the images of one prompt that are kept, in ascending order.

    Kept are the judge's best four and every wrong image among its best 16. Of the right images it keeps the lowest in
    rank and the first two others.

    Args:
        margins: (S,), log-odds of yes.
        correct: (S,), whether the evaluator accepts the image.
    """
    order = np.argsort(-margins, kind="stable")
    kept = set(order[:TOP].tolist()) | {int(k) for k in order[:WRONG_AMONG] if not correct[k]}
    right = [int(k) for k in order if correct[k]]
    kept |= set(right[-1:])
    kept |= set(sorted(set(right) - kept)[:OTHER_RIGHT])
    return sorted(kept)


def mine(
    path: Path, pool: Sequence[PoolImages], model: JudgeTrainingModel, collate: Collator, progress: Progress
) -> list[PoolImages]:
    """`hard_images` of every job of a pool, each with a single prompt.

    Args:
        path: file of the chosen indices, in a run whose settings decide them; read instead of mining again.
        pool: images of the round.
        model: judge of the round before.
        collate: its tensors.
        progress: called with `step` and `steps`, the numbers of jobs done and wanted.
    """
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))["kept"]
    else:
        kept = []
        for number, job in enumerate(pool):
            margins = image_margins(model, collate, job.images, job.specs)
            pairs = zip(job.images, job.specs, strict=True)
            kept.append(hard_images(margins, np.array([evaluate(image, spec).correct for image, spec in pairs])))
            progress({"step": number + 1, "steps": len(pool)})
        with whole_file(path) as part:
            part.write_text(json.dumps({"kept": kept}) + "\n", encoding="utf-8")
    return [job.of(indices) for job, indices in zip(pool, kept, strict=True)]
