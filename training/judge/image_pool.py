"""Generated images on disk: one file a job, written once, resumable, refused where the settings differ.

B images, (H, W) pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.models.generator import Generator
from bestofn.models.sampling import draw
from bestofn.models.shapes.prompts import PromptSpec
from bestofn.models.weight_files import whole_file

SETTINGS = "settings.json"

BATCH = 32
"""Images of one forward, at most."""

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class DrawJob:
    """Images that are drawn together.

    Attributes:
        specs: prompt of each image.
        seeds: noise seed of each image.
        steps: number of solver steps.
    """

    specs: tuple[PromptSpec, ...]
    seeds: tuple[int, ...]
    steps: int

    @classmethod
    def one_prompt(cls, spec: PromptSpec, first_seed: int, images: int, steps: int) -> DrawJob:
        """`images` images of one prompt with consecutive seeds."""
        return cls((spec,) * images, tuple(range(first_seed, first_seed + images)), steps)

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        return {"prompts": [spec.prompt for spec in self.specs], "seeds": list(self.seeds), "steps": self.steps}


@dataclass(frozen=True)
class PoolImages:
    """Images of a job, (B, H, W, 3) uint8, with the prompt of each."""

    images: Images
    specs: tuple[PromptSpec, ...]

    def of(self, indices: Sequence[int]) -> PoolImages:
        """Some of the images."""
        return PoolImages(self.images[list(indices)], tuple(self.specs[k] for k in indices))


def fill_pool(
    folder: Path,
    jobs: Sequence[DrawJob],
    settings: Mapping[str, Any],
    generator: Callable[[], Generator],
    progress: Callable[[int, int], None],
) -> list[PoolImages]:
    """Draw the jobs whose file is missing and return all of them.

    Args:
        folder: folder of the pool; it grows by a file a job.
        jobs: images to draw.
        settings: everything that the images depend on, the jobs too, as JSON values; kept in the folder.
        generator: source of the generator, called only if a file is missing.
        progress: called with the numbers of jobs done and wanted.

    Raises:
        ValueError: the folder was filled with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder / SETTINGS, settings)
    out: list[PoolImages] = []
    loaded: Generator | None = None
    for number, job in enumerate(jobs):
        path = folder / f"{number:05d}.npz"
        if not path.is_file():
            loaded = loaded or generator()
            images = draw_job(loaded, job)
            with whole_file(path) as part, part.open("wb") as file:
                np.savez_compressed(file, images=images)
        with np.load(path) as kept:
            out.append(PoolImages(kept["images"], job.specs))
        progress(number + 1, len(jobs))
    return out


@torch.inference_mode()
def draw_job(generator: Generator, job: DrawJob) -> Images:
    """The images (B, H, W, 3) of a job; a transformer in bfloat16 has a decoder in bfloat16."""
    parts = []
    for prompt, group in groupby(zip(job.specs, job.seeds, strict=True), key=lambda pair: pair[0].prompt):
        seeds = [seed for _, seed in group]
        for start in range(0, len(seeds), BATCH):
            latents = draw(generator, prompt, seeds[start : start + BATCH], num_inference_steps=job.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=generator.dtypes["transformer"] == torch.bfloat16):
                parts.append(generator.decode(latents).numpy())
    return np.concatenate(parts)


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a folder to a file, or compare them with those that it was filled with.

    Raises:
        ValueError: they differ; names the first setting that does.
    """
    settings = json.loads(json.dumps(dict(settings)))
    if not path.is_file():
        with whole_file(path) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    if different := sorted(name for name in there.keys() | settings.keys() if there.get(name) != settings.get(name)):
        name = different[0]
        raise ValueError(
            f"{path.parent} was filled with {name} {there.get(name)!r}, not {settings.get(name)!r}: "
            "choose another --run, or delete that folder"
        )
