"""Candidate i is the image that plain diffusers makes of seed + i with the same checkpoint."""

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline, SanaSprintPipeline

from bestofn.models.checkpoint import EMBEDDED
from bestofn.models.generator import Generator
from bestofn.models.sampling import generate

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # diffusers' own
)

PROMPT = "A photo of a RED star, left of a blue circle "
SQUARE, WIDE = (32, 32), (64, 32)  # width, height
CASES = {
    "plain": ("tiny", SQUARE, 4, 4.5, ""),
    "many_steps": ("tiny", SQUARE, 20, 4.5, ""),
    "one_step": ("tiny", SQUARE, 1, 2.0, ""),
    "no_guidance": ("tiny", SQUARE, 3, 1.0, ""),
    "negative_wide": ("tiny", WIDE, 4, 6.0, "Blurry"),
    "patch_position": ("patch_position", SQUARE, 6, 3.0, ""),
    "patch_position_tall": ("patch_position", (32, 96), 3, 3.0, "dark"),
    "few_heads": ("few_heads", SQUARE, 5, 4.5, ""),
}


@pytest.fixture(scope="module")
def diffusers_image():
    """The image of one call of a plain pipeline, each pipeline loaded once."""
    pipelines = {}

    def draw(folder, seed, width, height, calls, **options):
        if folder not in pipelines:
            kind = SanaSprintPipeline if "Sprint" in (folder / "model_index.json").read_text() else SanaPipeline
            pipelines[folder] = kind.from_pretrained(folder, dtype=torch.float32)
            pipelines[folder].set_progress_bar_config(disable=True)
        image = pipelines[folder](
            PROMPT,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
            use_resolution_binning=False,
            max_sequence_length=calls.max_sequence_length,
            complex_human_instruction=list(calls.complex_human_instruction),
            **options,
        ).images[0]
        return np.asarray(image)

    return draw


def assert_same_image(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 5, "a flat image proves nothing"
    near = np.abs(ours.astype(int) - theirs.astype(int)) <= 1
    assert near.mean() >= 0.999


@pytest.mark.parametrize("case", CASES)
def test_same_image_as_diffusers(case, tiny_checkpoints, diffusers_image):
    variant, (width, height), steps, guidance, negative = CASES[case]
    generator = Generator.load(str(tiny_checkpoints[variant]))
    seeds = (3, 2**62 + 11)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative}
    ours = generate(generator, PROMPT, seeds, width=width, height=height, **options).numpy()
    for image, seed in zip(ours, seeds, strict=True):
        path = tiny_checkpoints[variant]
        assert_same_image(image, diffusers_image(path, seed, width, height, generator.calls, **options))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_same_image_as_diffusers_sprint(steps, tiny_checkpoints, diffusers_image):
    generator = Generator.load(str(tiny_checkpoints["sprint"]))
    ours = generate(generator, PROMPT, [5], num_inference_steps=steps).numpy()[0]
    options = {"num_inference_steps": steps, "intermediate_timesteps": 1.3 if steps == 2 else None}
    theirs = diffusers_image(tiny_checkpoints["sprint"], 5, 32, 32, generator.calls, **options)
    assert_same_image(ours, theirs)


@pytest.mark.skipif(not (EMBEDDED["shapes"] / "model_index.json").exists(), reason="shapes weights are not there yet")
def test_embedded_checkpoint_draws_what_diffusers_draws(diffusers_image):
    generator = Generator.load("shapes")
    defaults = generator.defaults
    ours = generate(generator, PROMPT, [0, 1, 2]).numpy()
    for seed, image in enumerate(ours):
        theirs = diffusers_image(
            EMBEDDED["shapes"],
            seed,
            defaults.width,
            defaults.height,
            generator.calls,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
        )
        assert_same_image(image, theirs)
