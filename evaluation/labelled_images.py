"""Images of the shapes benchmark as files, each with the evaluator's word on it, for judges to be compared on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bestofn.evaluation.drawing import BATCH
from bestofn.evaluation.tasks import benchmark, check_size
from bestofn.models.lora import revision_with
from bestofn.models.sampling import LoadedGenerator, generate
from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.weight_files import whole_file

REMEDY = "take --model shapes, or label images yourself and name them with --labels"


def draw_labelled(
    folder: Path,
    generator: LoadedGenerator,
    numbers: Sequence[int],
    samples: int,
    progress: Callable[[int, int], None],
) -> Path:
    """Draw the first candidates of prompts, those of an evaluation's pool. Files that are there are kept.

    Args:
        folder: gets a folder for the generator's revision, with images and `labels.jsonl`.
        generator: a generator of 64x64 images of the shapes world.
        numbers: numbers of benchmark prompts.
        samples: images of each prompt.
        progress: called with the images done and wanted.

    Returns:
        The list, as `labels.read_labels` reads it.

    Raises:
        SetupError: the evaluator cannot measure images of this size.
    """
    check_size(generator.checkpoint.name, (generator.defaults.width, generator.defaults.height), REMEDY)
    revision = revision_with(generator.checkpoint.revision, getattr(generator, "loras", ()))
    images = folder / f"images-{revision}"
    images.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number in numbers:
        task = benchmark()[number]
        files = [images / f"{number:03d}-{i:04d}.png" for i in range(samples)]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            drawn = generate(generator, task.prompt, [task.seed + i for i in some]).numpy()  # (B, H, W, 3) uint8
            for i, image in zip(some, drawn, strict=True):
                with whole_file(files[i]) as part:
                    Image.fromarray(image).save(part, "PNG")
            progress(len(lines) + start, len(numbers) * samples)
        for file in files:
            with Image.open(file) as kept:
                correct = task.spec is not None and evaluate(np.asarray(kept), task.spec).correct
            lines.append(json.dumps({"image": file.name, "prompt": task.prompt, "correct": correct, "group": number}))
    labels = images / "labels.jsonl"  # in `folder` a list that a person wrote would be lost
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    progress(len(lines), len(lines))
    return labels
