"""Settings of the embedded judge's training, without torch: sizes of its stages, pools and batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BatchMix:
    """Composition of a batch.

    Attributes:
        groups: number of prompts with generated images.
        group_images: number of images of each of them.
        pairs: number of minimal pairs.
        place_pairs: number of further minimal pairs, all with swapped places.
        scenes: number of composed scenes.
        flawed: share of the scenes that have flawed objects.
        questions: number of questions on a scene or a generated image.
        pair_questions: number of questions on each image of a pair.
    """

    groups: int = 4
    group_images: int = 4
    pairs: int = 5
    place_pairs: int = 2
    scenes: int = 5
    flawed: float = 0.5
    questions: int = 4
    pair_questions: int = 2


@dataclass(frozen=True)
class JudgeSettings:
    """One run of the embedded judge's training.

    Attributes:
        run: folder of the rounds' checkpoints, pools and logs; an interrupted run resumes from it.
        out: folder of the exported judge.
        generator: name or folder of the checkpoint that draws the images.
        start: folder of a small judge to go on from, without the rendered stage, or "shapes"; None: from nothing.
        seed: seed of weights, prompts, noise and batches.
        vision_warmup_steps: first updates of the rendered stage, on label maps alone.
        rendered_steps: updates on composed scenes, the warm-up included.
        place_steps: updates on scenes and pairs with swapped places, before the generated images.
        prompts: number of prompts of round 0.
        images: number of images of each of them.
        steps: updates of round 0.
        adversarial_rounds: number of rounds on images that the judge of the round before ranks high.
        adversarial_prompts: number of prompts of each.
        adversarial_images: number of images drawn of each prompt.
        adversarial_steps: updates of each.
        decay_steps: updates of the final decay, on all rounds.
        scenes: number of composed scenes of the held-out score.
        validation_prompts: number of validation prompts of each category.
        validation_images: number of images of each of them.
        calibration_prompts: number of calibration prompts of each category.
        calibration_images: number of images of each of them.
        rendered_mix: batches of the rendered stage; pairs and many flaws would hide what its questions teach.
        place_mix: batches of the places stage: other flaws would hide places, the faintest of all.
        mix: batches of all later stages.
        low_precision: whether matrix products are computed in bfloat16, in training and drawing.
        compiled: whether the generator's blocks are compiled, where a compiler is there.
    """

    run: Path
    out: Path
    generator: str = "shapes"
    start: str | None = None
    seed: int = 0
    vision_warmup_steps: int = 200
    rendered_steps: int = 1500
    place_steps: int = 1200
    prompts: int = 1000
    images: int = 8
    steps: int = 2000
    adversarial_rounds: int = 4
    adversarial_prompts: int = 128
    adversarial_images: int = 64
    adversarial_steps: int = 1200
    decay_steps: int = 8000
    scenes: int = 200
    validation_prompts: int = 10
    validation_images: int = 16
    calibration_prompts: int = 40
    calibration_images: int = 32
    rendered_mix: BatchMix = field(
        default_factory=lambda: BatchMix(groups=0, pairs=0, place_pairs=0, scenes=32, flawed=0.2, questions=6)
    )
    place_mix: BatchMix = field(
        default_factory=lambda: BatchMix(groups=0, pairs=0, place_pairs=12, scenes=8, flawed=0.2, questions=6)
    )
    mix: BatchMix = field(default_factory=BatchMix)
    low_precision: bool = True
    compiled: bool = True

    def recorded(self) -> dict[str, Any]:
        """Settings that decide the result, as JSON values: all but the folders."""
        return {name: value for name, value in asdict(self).items() if name not in ("run", "out")}
