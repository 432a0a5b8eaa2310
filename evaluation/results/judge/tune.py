"""The shipped judge trained further with swapped pairs: `python evaluation/results/judge/tune.py RUN [STEPS]`.

Writes RUN/judge, which `swaps.py RUN/judge` compares with the others. A run that is cut off goes on where it was.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bestofn.judge.judge import EMBEDDED, Judge
from bestofn.training.judge.dataset import BatchSampler, label_pool
from bestofn.training.judge.loop import Schedule, train
from bestofn.training.judge.outlines import OutlineLibrary
from bestofn.training.judge.prompt_sets import random_jobs
from bestofn.training.judge.settings import JudgeSettings
from bestofn.training.judge.trainer import JudgeTrainer

PROMPTS, IMAGES, PAIRS, RATE = 500, 8, 8, 2e-3


def main(run: Path, steps: int) -> None:
    """Train on images of random training prompts, composed scenes and minimal pairs; prints held-out scores."""
    torch.set_num_threads(1)
    settings = JudgeSettings(run, run / "out", validation_prompts=20)
    trainer = JudgeTrainer(settings, lambda name, figures: None)
    shipped = Judge.load(EMBEDDED).model.state_dict()
    trainer.model.model.load_state_dict({name: value.float() for name, value in shipped.items()})
    sys.stdout.write(f"before {trainer.score()}\n")
    groups, objects = label_pool(trainer.pool("images", random_jobs(7, PROMPTS, IMAGES)))
    batches = BatchSampler(77, replace(settings.mix, pairs=PAIRS), [groups], OutlineLibrary(objects))
    schedule = Schedule(steps, RATE, decay=1.0, low_precision=True, save_every=500)
    train(trainer.model, schedule, batches, trainer.collate, trainer.score, run / "tuned")
    trainer.export(run / "judge")
    sys.stdout.write(f"after {trainer.score()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1500)
