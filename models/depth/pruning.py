"""Depth pruning: the blocks that change their input least are left out (SANA-1.5, arXiv 2501.18427, section 2.4).

B batch, N tokens, D width, Y layers.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestofn.models.checkpoint import IMPORTANCE, Checkpoint, importance_order
from bestofn.models.depth.rewrite import rewrite
from bestofn.models.errors import ModelError
from bestofn.models.generator import Generator
from bestofn.models.sampling import generate
from bestofn.models.shapes.prompts import CATEGORIES, sample_prompt
from bestofn.models.weight_files import whole_file

CALIBRATION = 100  # prompts


@torch.inference_mode()
def block_importance(
    generator: Generator,
    prompts: Sequence[str],
    seed: int = 0,
    num_inference_steps: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """How much every block turns its input while images are drawn: BI_i = 1 - E cos(x_i, x_{i+1}).

    The mean is over tokens, both halves of guidance, timesteps and prompts; one image a prompt, at the checkpoint's
    size and guidance.

    Args:
        generator: the checkpoint.
        prompts: for calibration; the paper takes 100.
        seed: seed of the first prompt's noise, one more for each next.
        num_inference_steps: the checkpoint's when None.
        progress: called with the number of prompts that are done.

    Returns:
        Y numbers, 0 for a block that leaves directions as they are.
    """
    blocks = generator.denoiser.transformer_blocks
    sums, counts = [torch.zeros((), device=generator.device) for _ in blocks], [0] * len(blocks)

    def measure(index: int) -> Callable[[nn.Module, tuple[Any, ...], tuple[Tensor, Tensor]], None]:
        def hook(block: nn.Module, inputs: tuple[Any, ...], out: tuple[Tensor, Tensor]) -> None:
            sums[index] += 1 - F.cosine_similarity(inputs[0].float(), out[0].float(), dim=-1).mean()  # (B, N, D) -> ()
            counts[index] += 1

        return hook

    handles = [block.register_forward_hook(measure(i)) for i, block in enumerate(blocks)]
    try:
        for i, prompt in enumerate(prompts):
            generate(generator, prompt, [seed + i], num_inference_steps=num_inference_steps)
            progress(i + 1)
    finally:
        for handle in handles:
            handle.remove()
    return [float(total) / count for total, count in zip(sums, counts, strict=True)]


def calibration_prompts(seed: int = 0) -> list[str]:
    """Prompts of the drawn world, of every category in turn."""
    rng = np.random.default_rng(seed)
    return [sample_prompt(rng, CATEGORIES[i % len(CATEGORIES)]).prompt for i in range(CALIBRATION)]


def kept_blocks(importance: Sequence[float], layers: int) -> list[int]:
    """The ``layers`` most important blocks, in the order of the model; of equals the earlier stays."""
    if not 1 <= layers < len(importance):
        raise ModelError(f"the checkpoint has {len(importance)} layers: keep 1 to {len(importance) - 1}, got {layers}")
    return sorted(importance_order(importance)[:layers])


def store_importance(checkpoint: Checkpoint, importance: Sequence[float], how: str) -> Path:
    """Write layer importances into a checkpoint's folder, for `Checkpoint.block_importance`.

    Args:
        checkpoint: the measured checkpoint.
        importance: one number a layer.
        how: description of the measurement, for readers of the file.

    Returns:
        The file.

    Raises:
        ModelError: the folder cannot be written.
    """
    path = checkpoint.path / IMPORTANCE
    fields = {"block_importance": [round(value, 6) for value in importance], "measured": how}
    try:
        with whole_file(path) as fresh:
            fresh.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror}): measure a copy of the folder") from error
    return path


def prune(checkpoint: Checkpoint, out: Path, kept: Sequence[int]) -> Path:
    """Write the checkpoint with the ``kept`` blocks alone; memory and errors as `models.depth.rewrite`."""
    layers = ", ".join(map(str, kept))
    return rewrite(checkpoint, out, kept, _none_is_new, 0, f"pruned to {len(kept)} layers, of the source {layers}")


def _none_is_new(name: str) -> tuple[float, float]:
    raise AssertionError(f"pruning draws no weights, asked for {name}")
