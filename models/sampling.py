"""The plain loop from a prompt to images: what the engine must equal, whatever it batches.

B candidates, C latent channels, (h, w) latent grid, (H, W) pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.errors import CheckpointError, ModelError
from bestofn.models.generator import Generator
from bestofn.models.guidance import guide
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.lora import Lora
from bestofn.models.solver import StepCoefficients, solver_step

if TYPE_CHECKING:
    from bestofn.models.pipelines.generator import PipelineGenerator

LoadedGenerator: TypeAlias = "Generator | PipelineGenerator"


def load_generator(
    name: str, device: torch.device, *, loras: Sequence[Lora] = (), low_precision: bool = False
) -> LoadedGenerator:
    """Resolve a checkpoint of any family and open it on a device; `loras` and `low_precision` are for SANA."""
    checkpoint = Checkpoint.resolve(name, any_pipeline=True)
    if checkpoint.is_sana:
        return Generator(checkpoint, device, loras=loras, low_precision=low_precision)
    if loras:
        raise CheckpointError(f"LoRAs are for SANA only, and {checkpoint.name} is of another family")
    from bestofn.models.pipelines.generator import PipelineGenerator  # which SANA does not pay for

    return PipelineGenerator(checkpoint, device)


def default_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Width and height of a checkpoint's images in pixels, without its weights.

    Returns:
        None of a pipeline whose size is known after loading only.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if checkpoint.is_sana:
        config = LinearDiTConfig.from_file(checkpoint.path / "transformer" / "config.json")
        return (config.sample_size * checkpoint.compression,) * 2
    from bestofn.models.pipelines.default_size import default_size as pipeline_size

    return pipeline_size(checkpoint)


@torch.inference_mode()
def generate(generator: LoadedGenerator, prompt: str, seeds: Sequence[int], **options: Any) -> Tensor:
    """Draw one image a seed, all in one batch; with a pipeline of another family in batches that fit into memory.

    Args:
        generator, prompt, seeds, options: as of `draw`.

    Returns:
        (B, H, W, 3) uint8 on the CPU, each image the one that plain diffusers makes of its seed, to rounding.
    """
    return generator.decode(draw(generator, prompt, seeds, **options))


@torch.inference_mode()
def draw(
    generator: LoadedGenerator,
    prompt: str,
    seeds: Sequence[int],
    *,
    negative_prompt: str = "",
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    preview_after: int | None = None,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """Finished latents of one image a seed, which the generator's `decode` takes.

    Args:
        generator: the checkpoint.
        prompt, negative_prompt: as the user wrote them.
        seeds: one an image.
        width, height, num_inference_steps, guidance_scale: the checkpoint's when None.
        preview_after: number of steps after which the predicted image is returned; None: all steps.
        layers: indices of the layers that run, ascending; None: all.

    Returns:
        (B, C, h, w) float32; (B, H, W, 3) in 0..1 of a pipeline of another family, which has decoded them.
    """
    if not isinstance(generator, Generator):
        if preview_after is not None or layers is not None:
            raise ModelError(f"{generator.family.name} has neither previews nor depths: draw with steps alone")
        size = {"width": width, "height": height, "num_inference_steps": num_inference_steps}
        options = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
        return generator.draw_all(prompt, seeds, **size, **options)
    defaults = generator.defaults
    width, height = width or defaults.width, height or defaults.height
    table = generator.solver_table(num_inference_steps or defaults.num_inference_steps)
    scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    B, device = len(seeds), generator.device

    draws = torch.stack([generator.noise(seed, width, height, 1 + table.noise_draws) for seed in seeds])
    draws = draws.transpose(0, 1).to(device)  # (draws, B, C, h, w)
    guided = generator.needs_negative(scale)
    contexts = generator.prompt_contexts([(prompt, False), (negative_prompt, True)] if guided else [(prompt, False)])
    context, *negatives = (one.select([0] * B) for one in contexts)
    scales = torch.full((B,), scale, device=device)
    rows = table.rows.to(device)

    x, previous = draws[0], torch.zeros_like(draws[0])
    for i in range(preview_after or table.steps):
        at = StepCoefficients.of(rows[i : i + 1].expand(B, -1))
        output = generator.output(x, at, context, scales, layers)
        for negative in negatives:
            output = guide(output, generator.output(x, at, negative, scales, layers), scales)
        noise = draws[1 + i] if i < table.noise_draws else None
        x, previous = solver_step(x, previous, output, at, noise)
    return x if preview_after is None else previous
