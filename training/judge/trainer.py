"""Trains the embedded judge in rounds: rendered scenes, generated images, images that fooled it, and a final decay."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.judge.loader import revision
from bestofn.judge.nvila import Nvila
from bestofn.judge.preprocess import ImageMode
from bestofn.judge.tiny import DESCRIBE, SHAPES, save, untrained
from bestofn.models.checkpoint import Checkpoint
from bestofn.models.generator import Generator
from bestofn.models.shapes.evaluator import Component
from bestofn.models.shapes.prompts import known_words
from bestofn.models.weight_files import whole_folder
from bestofn.service.engine.compilation import compile_blocks
from bestofn.training.judge import prompt_sets
from bestofn.training.judge.calibration_fit import Report, calibrate
from bestofn.training.judge.dataset import (
    QUESTION,
    BatchSampler,
    PromptGroup,
    label_pool,
    unseen_scenes,
    words,
)
from bestofn.training.judge.examples import Collator
from bestofn.training.judge.image_pool import BATCH, SETTINGS, DrawJob, PoolImages, check_settings, fill_pool
from bestofn.training.judge.labels import CLASSES, GRID
from bestofn.training.judge.loop import JudgeTrainingModel, Schedule, train
from bestofn.training.judge.mining import mine
from bestofn.training.judge.model_card import Training, write_card
from bestofn.training.judge.outlines import OutlineLibrary
from bestofn.training.judge.scoring import choice_score, scene_score
from bestofn.training.judge.settings import BatchMix, JudgeSettings

STEPS = 12
"""Solver steps of validation and calibration images."""

COMPILED_ROWS = (BATCH, 16, 8)
"""Images of the forwards that are compiled: those of a whole batch, of validation, and of round 0."""

SCENE_QUESTIONS = 6
"""Questions on each scene of the held-out score."""


@dataclass(frozen=True)
class Stage:
    """One stage of the run.

    Attributes:
        name: name of the stage and of its folder.
        schedule: length, rate and precision.
        mix: composition of its batches.
        jobs: images that are drawn before it; none if empty.
        mined: whether a judge chooses which of them are kept.
        vision_warmup_steps: first updates, on label maps alone.
    """

    name: str
    schedule: Schedule
    mix: BatchMix
    jobs: tuple[DrawJob, ...] = ()
    mined: bool = False
    vision_warmup_steps: int = 0


def stages(settings: JudgeSettings) -> list[Stage]:
    """All stages in order; the rate falls to zero at the end of each, so that each ends with a usable judge."""

    def schedule(steps: int, rate: float, decay: float) -> Schedule:
        return Schedule(steps, rate, warmup_steps=30, decay=decay, low_precision=settings.low_precision, save_every=200)

    rendered = replace(schedule(settings.rendered_steps, 1e-2, 0.0), warmup_steps=60)
    mix, warmup = settings.mix, settings.vision_warmup_steps
    first = prompt_sets.random_jobs(settings.seed, settings.prompts, settings.images)
    out = [] if settings.start else [Stage("rendered", rendered, settings.rendered_mix, vision_warmup_steps=warmup)]
    out += [
        Stage("places", schedule(settings.place_steps, 5e-3, 0.4), settings.place_mix),
        Stage("round-0", schedule(settings.steps, 8e-3, 0.4), mix, tuple(first)),
    ]
    for number in range(1, 1 + settings.adversarial_rounds):
        jobs = prompt_sets.adversarial_jobs(
            settings.seed, number, settings.adversarial_prompts, settings.adversarial_images
        )
        adversarial = schedule(settings.adversarial_steps, 6e-3, 0.4)
        out.append(Stage(f"round-{number}", adversarial, mix, tuple(jobs), mined=True))
    return [*out, Stage("decay", schedule(settings.decay_steps, 5e-3, 1.0), mix)]


Show = Callable[[str, Mapping[str, float]], None]
"""Called with the name of a stage, or of what is drawn for it, and figures: at least `step` and `steps`."""


class JudgeTrainer:
    """A judge in training with everything its stages need.

    Args:
        settings: settings of the run.
        show: receives the progress of every stage.
    """

    def __init__(self, settings: JudgeSettings, show: Show) -> None:
        self.settings, self.show = settings, show
        nvila, self.question = untrained(SHAPES, words(), QUESTION, settings.seed)
        self.start_revision: str | None = None
        if settings.start is not None:
            self.start_revision = _go_on(nvila, EMBEDDED if settings.start == "shapes" else Path(settings.start))
        mode = ImageMode("resize", SHAPES.S, 1, 1, (0.5,) * 3, (0.5,) * 3, 1 / 255)
        self.collate = Collator(self.question, mode, DESCRIBE, GRID)
        self.model = JudgeTrainingModel(nvila, CLASSES)
        self._pools: list[list[PromptGroup]] = []
        self._objects: list[Component] = []
        self._scenes = unseen_scenes(settings.scenes, SCENE_QUESTIONS)

    @cached_property
    def _generator(self) -> Generator:
        generator = Generator(Checkpoint.resolve(self.settings.generator), low_precision=self.settings.low_precision)
        if self.settings.compiled:
            compile_blocks(generator, self.settings.run, COMPILED_ROWS).wait()
        return generator

    @cached_property
    def generator_revision(self) -> str:
        """Revision of the generator's checkpoint."""
        return Checkpoint.resolve(self.settings.generator).revision

    @cached_property
    def _validation(self) -> list[PromptGroup]:
        jobs = prompt_sets.validation_jobs(self.settings.validation_prompts, self.settings.validation_images, STEPS)
        return label_pool(self.pool("validation", jobs))[0]

    def pool(self, name: str, jobs: Sequence[DrawJob]) -> list[PoolImages]:
        """Images of the jobs, drawn where the pool's folder does not have them."""
        settings = {
            "generator": self.generator_revision,
            "low_precision": self.settings.low_precision,
            "jobs": hashlib.sha256("".join(f"{job.to_json()}\n" for job in jobs).encode()).hexdigest()[:12],
        }

        def progress(done: int, wanted: int) -> None:
            self.show(f"images of {name}", {"step": done, "steps": wanted})

        folder = self.settings.run / name / "pool"
        return fill_pool(folder, jobs, settings, lambda: self._generator, progress)

    def train(self, stage: Stage, seed: int) -> dict[str, Any]:
        """Draw the images of a stage, train on all images so far, export the judge; returns figures for the card."""
        if stage.jobs:
            pool = self.pool(stage.name, stage.jobs)
            if stage.mined:
                show = partial(self.show, f"mining of {stage.name}")
                pool = mine(self.settings.run / stage.name / "mined.json", pool, self.model, self.collate, show)
            groups, objects = label_pool(pool)
            self._pools.append(groups)
            self._objects += objects
        library = OutlineLibrary(self._objects) if self._objects else None
        examples = BatchSampler(seed, stage.mix, self._pools, library, stage.vision_warmup_steps)
        seconds = train(
            self.model,
            stage.schedule,
            examples,
            self.collate,
            self.score,
            self.settings.run / stage.name,
            partial(self.show, stage.name),
        )
        with whole_folder(self.settings.run / stage.name / "judge") as folder:
            self.save(folder)
        return {
            "stage": stage.name,
            "drawn": sum(len(job.seeds) for job in stage.jobs),
            "kept": sum(map(len, self._pools[-1])) if stage.jobs else 0,
            "updates": stage.schedule.steps,
            "seconds": round(seconds),
            **{name: round(value, 4) for name, value in self.score().items()},
        }

    def score(self) -> dict[str, float]:
        """Held-out scores: right answers on unseen scenes, choice among the images of the validation prompts."""
        return scene_score(self.model, self.collate, self._scenes) | choice_score(
            self.model, self.collate, self._validation
        )

    def save(self, folder: Path) -> None:
        """Write the judge into a new folder."""
        save(folder, self.model.model, self.question, sorted(known_words()), SHAPES.S, torch.float16)

    def calibrated(self, folder: Path) -> Report:
        """Calibration of an exported judge on images of the calibration prompts."""
        settings = self.settings
        trained = {spec.prompt for stage in stages(settings) for job in stage.jobs for spec in job.specs}
        jobs = prompt_sets.calibration_jobs(settings.calibration_prompts, settings.calibration_images, STEPS, trained)
        groups, _ = label_pool(self.pool("calibration", jobs))
        judge = Judge.load(folder)
        fields = []
        for group in groups:
            verdicts = judge.judge([one.labelled.image for one in group], [one.spec.prompt for one in group])
            margins = [verdict.yes_logit - verdict.no_logit for verdict in verdicts]
            fields.append([(margin, one.correct) for margin, one in zip(margins, group, strict=True)])
        return calibrate(fields)


def _go_on(model: Nvila, folder: Path) -> str:
    """Load the weights of a judge of the same sizes and words; returns its revision.

    Raises:
        ValueError: it has other sizes or words.
    """
    weights = Judge.load(folder).model.state_dict()
    own = model.state_dict()
    if different := sorted(
        n for n in own.keys() | weights.keys() if n not in own or n not in weights or own[n].shape != weights[n].shape
    ):
        raise ValueError(f"{str(folder)!r} differs from the judge that this training makes in {different[0]}")
    model.load_state_dict(weights)
    return revision(folder)


def train_judge(settings: JudgeSettings, show: Show) -> Training:
    """Run all stages, calibrate the judge and write it with its card; returns what the card reports.

    Args:
        settings: settings of the run.
        show: receives the progress of every stage, held-out scores included.

    Raises:
        ValueError: the run's folder was filled with other settings.
    """
    settings.run.mkdir(parents=True, exist_ok=True)
    trainer = JudgeTrainer(settings, show)
    recorded = settings.recorded() | {
        "generator_revision": trainer.generator_revision,
        "start_revision": trainer.start_revision,
    }
    check_settings(settings.run / SETTINGS, recorded)
    done = [trainer.train(stage, settings.seed * 100 + k) for k, stage in enumerate(stages(settings))]
    last = settings.run / done[-1]["stage"] / "judge"
    report = trainer.calibrated(last)
    source = f"images of model {trainer.generator_revision}, {STEPS} steps, calibration prompts"
    training = Training(recorded, tuple(done), revision(last), report.to_json(revision(last), source))
    with whole_folder(settings.out) as folder:
        trainer.save(folder)
        write_card(folder, training)
    return training
