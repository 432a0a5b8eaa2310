"""The shipped generator: a folder that plain diffusers loads, small, and good at what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline

from bestofn.models.shapes.evaluator import evaluate
from bestofn.models.shapes.prompts import PromptSpec, counted, known_words, pair, single
from bestofn.models.shapes.world import Image

FOLDER = Path(__file__).parents[2] / "models" / "weights" / "shapes"


@pytest.fixture(scope="module")
def pipeline() -> SanaPipeline:
    pipeline = SanaPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: SanaPipeline, prompt: str, seeds: range) -> list[Image]:
    result = pipeline(
        prompt,
        num_images_per_prompt=len(seeds),
        height=64,
        width=64,
        use_resolution_binning=False,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
        **json.loads((FOLDER / "bestofn.json").read_text()),
    )
    return [np.rint(image * 255).astype(np.uint8) for image in result.images]


def test_folder_is_small_and_float32(pipeline: SanaPipeline) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 15e6
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert known_words() <= set(pipeline.tokenizer.get_vocab())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers, numpy 2
@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (single("square", "blue"), 4),
        (pair("star", "circle", ("red", "blue"), "left of"), 2),
        (counted("cross", 4, "red"), 3),
    ],
    ids=["colour", "position and colours", "count"],
)
def test_draws_what_it_is_asked(pipeline: SanaPipeline, spec: PromptSpec, least: int) -> None:
    """Of eight images at least some are right; seeds are fixed, so this fails only when weights or code change."""
    images = _draw(pipeline, spec.prompt, range(8))
    assert sum(evaluate(image, spec).correct for image in images) >= least
