"""Trains the embedded judge: first on rendered scenes, then on a generator's own pictures, and exports it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bestofn.judge.preprocess import ImageMode
from bestofn.judge.tiny import DESCRIBE, SHAPES, save, untrained
from bestofn.models.generator import Generator
from bestofn.models.shapes.prompts import known_words
from bestofn.training.judge.dataset import CLASSES, GRID, QUESTION, Generated, batches, category, unseen, words
from bestofn.training.judge.examples import Collator, Lesson
from bestofn.training.judge.generated_images import draw_pool
from bestofn.training.judge.loop import Plan, Progress, Pupil, train
from bestofn.training.runs import publish

TUNING_SHARE = 0.3
"""Share of the generator's pictures in a batch of the second stage."""

HELD_BACK = 0.1
"""Share of the pool that is for scoring only."""


@dataclass(frozen=True)
class JudgeSettings:
    """One run of the embedded judge's training.

    Attributes:
        run: folder of checkpoints and of the pool; a run that was cut off goes on from there.
        out: folder of the exported judge, replaced at every score.
        looking: first steps, in which the vision tower learns alone.
        steps: of the first stage, these included.
        tuning_steps: of the second, which starts from the first's weights; 0 for none.
        generator: whose pictures the second stage judges.
        prompts: of the pool.
        samples: pictures of each.
        pictures: a batch.
        questions: a picture.
        seed: of everything.
        reduced: bfloat16 matrix products (quicker where the processor has them).
    """

    run: Path
    out: Path
    looking: int = 220
    steps: int = 880
    tuning_steps: int = 750
    generator: str | None = "shapes"
    prompts: int = 200
    samples: int = 4
    pictures: int = 32
    questions: int = 6
    seed: int = 0
    reduced: bool = False


class School:
    """A pupil with everything its lessons need.

    Args:
        seed: of its weights.
    """

    def __init__(self, seed: int) -> None:
        self.model, self.question = untrained(SHAPES, words(), QUESTION, seed)
        self.image_mode = ImageMode("resize", SHAPES.S, 1, 1, (0.5,) * 3, (0.5,) * 3, 1 / 255)
        self.collate = Collator(self.question, self.image_mode, DESCRIBE, GRID)
        self.pupil = Pupil(self.model, CLASSES)

    def export(self, folder: Path) -> None:
        """Puts the judge as it is into a folder, at once."""
        known = sorted(known_words())
        publish(folder, lambda fresh: save(fresh, self.model, self.question, known, SHAPES.S, torch.float16))

    @torch.inference_mode()
    def margins(self, lessons: Sequence[Lesson], share: int = 50) -> list[float]:
        """Log-odds of yes for every question of the lessons, in order."""
        out: list[float] = []
        for start in range(0, len(lessons), share):
            bare = [tuple(replace(y, hints=()) for y in x.asked) for x in lessons[start : start + share]]
            pictures = [x.picture for x in lessons[start : start + share]]
            batch = self.collate([Lesson(x, asked) for x, asked in zip(pictures, bare, strict=True)])
            logits, _, _ = self.pupil(batch, self.collate.head)
            out += (logits[:, self.question.yes_id] - logits[:, self.question.no_id]).tolist()
        return out

    def report(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """Share of right answers: of all questions ("accuracy") and by category."""
        asked = [x for lesson in lessons for x in lesson.asked]
        right: dict[str, list[bool]] = defaultdict(list)
        for x, margin in zip(asked, self.margins(lessons), strict=True):
            right[category(x.prompt)].append((margin > 0) == x.satisfied)
        all_right = [ok for oks in right.values() for ok in oks]
        return {"accuracy": float(np.mean(all_right))} | {k: float(np.mean(v)) for k, v in sorted(right.items())}

    def choosing(self, pool: Sequence[Generated], samples: int) -> dict[str, float]:
        """How well it picks: the share of correct pictures at random, by its choice, and where one of a prompt is.

        Args:
            pool: `samples` pictures of each prompt, one prompt after the other.
            samples: N.
        """
        margins = self.margins([one.lesson(np.random.default_rng(0), 1) for one in pool])
        score = np.array(margins).reshape(-1, samples)
        correct = np.array([one.correct for one in pool]).reshape(-1, samples)
        right = (np.array(margins) > 0) == correct.ravel()
        chosen = correct[np.arange(len(correct)), score.argmax(1)]
        return {
            "made": float(right.mean()),
            "one": float(correct.mean()),
            "chosen": float(chosen.mean()),
            "oracle": float(correct.any(1).mean()),
        }


Report = Callable[[Mapping[str, float]], None]


def train_judge(settings: JudgeSettings, progress: Progress, report: Report) -> School:
    """Trains, scores and exports.

    Args:
        settings: of the run.
        progress: figures of every step (`training.Progress`).
        report: figures of every held-out score: by category on rendered scenes and, in the second stage, on the
            generator's pictures: "made" accuracy, and the share of correct ones at random ("one"), "chosen", "oracle".
    """
    school = School(settings.seed)
    test = unseen(300)

    def scored(pool: Sequence[Generated]) -> Callable[[], float]:
        def score() -> float:
            figures = school.report(test)
            report(figures | (school.choosing(pool, settings.samples) if pool else {}))
            school.export(settings.out)
            return figures["accuracy"]

        return score

    first = batches(settings.seed, settings.pictures, settings.questions, settings.looking)
    alone = settings.generator is None or settings.tuning_steps == 0
    # The rate falls once: at the end of the only stage, or over the whole of the second.
    plan = Plan(settings.steps, learning_rate=1e-2, decay=0.4 if alone else 0.0, reduced=settings.reduced)
    train(school.pupil, plan, first, school.collate, scored(()), settings.run / "rendered", progress)
    if alone or settings.generator is None:
        return school

    def counted(done: int, wanted: int) -> None:
        progress({"step": done, "steps": wanted, "drawing": 1.0})

    generator = Generator.load(settings.generator)
    path = settings.run / f"pool-{generator.checkpoint.revision[:12]}.npz"
    pool = draw_pool(generator, path, settings.prompts, settings.samples, settings.seed, counted)
    back = max(1, round(HELD_BACK * settings.prompts)) * settings.samples
    mixed = batches(settings.seed + 1, settings.pictures, settings.questions, 0, pool[back:], TUNING_SHARE)
    plan = Plan(settings.tuning_steps, learning_rate=8e-3, warm_up=20, decay=1.0, reduced=settings.reduced)
    train(school.pupil, plan, mixed, school.collate, scored(pool[:back]), settings.run / "made", progress)
    return school
