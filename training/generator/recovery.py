"""Trains a pruned or grown shapes checkpoint further: the same flow matching, a falling rate, nothing else."""

from pathlib import Path

from bestofn.models.weight_files import whole_folder
from bestofn.training.generator.pipeline import save_pipeline
from bestofn.training.generator.trainer import GeneratorSettings, further, train_generator
from bestofn.training.runs import Progress

SCENES = 80_000


def recover(
    start: Path,
    out: Path,
    run: Path,
    steps: int,
    progress: Progress,
    seed: int = 0,
    batch: int = 128,
    rate: float = 1.0,
) -> Path:
    """Train for ``steps`` steps with a learning rate that falls to zero.

    Args:
        start: a shapes checkpoint of any depth, as `bestofn.models.depth.rewrite.rewrite` wrote it.
        out: where the trained checkpoint is put, in the place of what is there.
        run: folder of the run's own files; what is in it goes on.
        steps: updates; the paper takes 100.
        progress: called now and then with the figures of the moment.
        seed: seed of scenes, captions and noise.
        batch: scenes an update.
        rate: the first rates, as a share of a fresh run's.

    Returns:
        ``out``.

    Raises:
        CheckpointError: the checkpoint is not of the drawn world.
    """
    settings = GeneratorSettings(
        run / "generator",
        start / "vae",
        steps,
        decay_share=1.0,
        seed=seed,
        batch_size=batch,
        scenes=min(SCENES, steps * batch),
        warmup_steps=min(10, steps),
        matrix_rate=rate * GeneratorSettings.matrix_rate,
        other_rate=rate * GeneratorSettings.other_rate,
    )
    parts = train_generator(further(settings, start), progress).averaged()
    story = (start / "README.md").read_text(encoding="utf-8").rstrip().removesuffix(".")
    with whole_folder(out) as folder:
        save_pipeline(parts, folder)
        (folder / "README.md").write_text(f"{story}; then trained for {steps} steps.\n", encoding="utf-8")
    return out
