"""Draws images of shapes prompts in large batches: bfloat16 matrix products, compiled transformer blocks.

B images of a batch, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bestofn.models.checkpoint import Checkpoint
from bestofn.models.generator import Generator
from bestofn.models.guidance import guide
from bestofn.models.linear_dit.compiled import CompiledBlocks
from bestofn.models.linear_dit.context import PromptContext
from bestofn.models.solver import StepCoefficients, solver_step

BATCH = 32
"""Images of one forward. A compiled block accepts this batch only, so a smaller one is padded."""

Images = NDArray[np.uint8]


class Drawer:
    """A generator at its own guidance scale and size, fast on CPUs with AVX512-BF16.

    Args:
        generator: name or folder of the checkpoint.
        low_precision: whether transformer and decoder compute in bfloat16.
        compiled: whether transformer blocks are compiled; eager blocks are used where compilation fails.
    """

    def __init__(self, generator: str, *, low_precision: bool = True, compiled: bool = True) -> None:
        self.generator = Generator(Checkpoint.resolve(generator), low_precision=low_precision)
        self.low_precision = low_precision
        self.compiled = compiled and self._compile()

    @property
    def revision(self) -> str:
        """Revision of the generator's checkpoint."""
        return self.generator.checkpoint.revision

    def _compile(self) -> bool:
        """Compile the blocks for a whole batch with its negative rows; without a C++ compiler, blocks stay eager."""
        generator, defaults = self.generator, self.generator.defaults
        blocks, size = CompiledBlocks(), generator.latent_shape(defaults.width, defaults.height)[1:]
        try:
            blocks.compile(generator.denoiser, 2 * BATCH, size, defaults.max_sequence_length)
        except Exception:  # compilers and their back ends raise errors of many types; eager blocks compute the same
            return False
        generator.denoiser.run = blocks
        return True

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Images:
        """Images (B, H, W, 3), one for each prompt and noise seed, in `steps` solver steps."""
        parts = []
        for start in range(0, len(prompts), BATCH):
            rows, noise = list(prompts[start : start + BATCH]), list(seeds[start : start + BATCH])
            missing = BATCH - len(rows) if self.compiled else 0
            parts.append(self._draw(rows + rows[-1:] * missing, noise + noise[-1:] * missing, steps)[: len(rows)])
        return np.concatenate(parts)

    @torch.inference_mode()
    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Images:
        generator, defaults = self.generator, self.generator.defaults
        table = generator.solver_table(steps)
        B = len(prompts)
        distinct = list(dict.fromkeys(prompts))
        contexts = generator.prompt_contexts([*((prompt, False) for prompt in distinct), ("", True)])
        rows = [distinct.index(prompt) for prompt in prompts] + [len(distinct)] * B
        context = PromptContext.stack(contexts).select(rows)
        x = torch.cat([generator.noise(seed, defaults.width, defaults.height) for seed in seeds])
        previous = torch.zeros_like(x)
        scale = torch.full((2 * B,), defaults.guidance_scale)
        for i in range(table.steps):
            doubled = StepCoefficients.of(table.rows[i : i + 1].expand(2 * B, -1))
            output = generator.output(torch.cat([x, x]), doubled, context, scale)
            conditional, unconditional = output.float().chunk(2)
            at = StepCoefficients.of(table.rows[i : i + 1].expand(B, -1))
            x, previous = solver_step(x, previous, guide(conditional, unconditional, scale[:B]), at, None)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
            images: Images = generator.decode(x).numpy()
        return images
