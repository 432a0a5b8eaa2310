"""SANA's linear diffusion transformer, split where time and prompt enter.

B batch, C latent channels, (h, w) latent grid, P patch side, N = h w / P^2 tokens, D width, L text tokens, Y layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bestofn.kernels.modulate import modulated_norm
from bestofn.models.linear_dit.blocks import Block, Norm
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.context import PromptContext, mask_bias
from bestofn.models.linear_dit.embeddings import (
    CaptionProjection,
    RMSNorm,
    TimestepEmbedding,
    TimestepGuidanceEmbedding,
    position_embedding,
)

NORM_OUT_EPS = 1e-6
Run = Callable[..., tuple[Tensor, Tensor]]  # takes a block and its arguments


class PatchEmbed(nn.Module):
    """Latent patches -> tokens; a convolution whose stride is its size is a matrix product."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(channels * patch * patch, width)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, N, D)."""
        B, C, h, w = latent.shape
        P = self.patch
        patches = latent.reshape(B, C, h // P, P, w // P, P).permute(0, 2, 4, 1, 3, 5)  # (B, h/P, w/P, C, P, P)
        return self.proj(patches.reshape(B, (h // P) * (w // P), C * P * P))  # type: ignore[no-any-return]


class LinearDiT(nn.Module):
    """The denoiser: velocity of the flow at (latent, timestep), given a prompt.

    `prompt_context` is everything that depends on the prompt alone; `forward` is what remains for each step. A batch
    may mix prompts, timesteps and guidance scales; no row sees another.
    """

    def __init__(self, config: LinearDiTConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.patch_embed = PatchEmbed(config.in_channels, config.patch_size, D)
        self.time_embed = TimestepGuidanceEmbedding(D) if config.guidance_embeds else TimestepEmbedding(D)
        self.caption_projection = CaptionProjection(config.caption_channels, D)
        self.caption_norm = RMSNorm(D)
        self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.scale_shift_table = nn.Parameter(torch.randn(2, D) / D**0.5)
        self.proj_out = nn.Linear(D, config.patch_size**2 * config.in_channels)
        self.run: Run = Block.__call__  # how blocks are called: see `compiled.py`

    def init_weights(self) -> None:
        """Start training: construction gives diffusers' initial values; a zero head makes the first velocity zero."""
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def pack(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Give every block one product for the queries, keys and values of the image: see `LinearAttention.pack`."""
        for block in self.transformer_blocks:
            block.attn1.pack(device, dtype)  # type: ignore[union-attr,operator]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and of computation."""
        return self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.proj_out.weight.device

    def prompt_context(self, embeds: Tensor, mask: Tensor) -> PromptContext:
        """Project the caption and take every block's cross-attention keys and values of it.

        Args:
            embeds: (B, L, caption channels), the text encoder's last hidden states.
            mask: (B, L), 1 for text, 0 for padding.

        Returns:
            The context of B prompts, for any number of steps and candidates.
        """
        caption = self.caption_norm(self.caption_projection(embeds.to(self.dtype)))  # (B, L, D)
        pairs = [block.attn2.keys_values(caption) for block in self.transformer_blocks]  # type: ignore[union-attr,operator]
        return PromptContext(
            keys=torch.stack([k for k, _ in pairs]),  # (Y, B, H, L, K)
            values=torch.stack([v for _, v in pairs]),  # (Y, B, H, L, K)
            bias=mask_bias(mask, self.dtype),  # (B, 1, 1, L)
        )

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        context: PromptContext,
        guidance: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        run: Run | None = None,
    ) -> Tensor:
        """Velocity of the flow.

        Args:
            latent: (B, C, h, w), h and w multiples of the patch side.
            timestep: (B,), as the scheduler counts (0 to 1000), times ``config.timestep_scale``.
            context: keys and values of a batch of B rows.
            guidance: (B,), guidance scale times ``config.guidance_embeds_scale``; only with ``config.guidance_embeds``.
            blocks: indices of the blocks that run, ascending; all if None. A few make a shallower model of the same
                weights, and the context of the whole model serves it.
            run: calls a block with its arguments; `self.run` if None.

        Returns:
            (B, C, h, w) in the weights' dtype.
        """
        B, C, h, w = latent.shape
        P, D = self.config.patch_size, self.config.width
        if self.config.in_channels != C or h % P or w % P:
            raise ValueError(
                f"latent must be (B, {self.config.in_channels}, multiple of {P} twice), got {(B, C, h, w)}"
            )
        if len(context) != B:
            raise ValueError(f"a batch of {B} needs the context of {B} rows, got {len(context)}")
        rows, columns = h // P, w // P

        x = self.patch_embed(latent.to(self.dtype))  # (B, N, D)
        if self.config.interpolation_scale is not None:
            base = self.config.sample_size // P
            place = position_embedding(D, rows, columns, base, self.config.interpolation_scale, x.device)
            x = (x + place).to(x.dtype)  # (B, N, D)
        embedded, modulation = self.time_embed(timestep, guidance)  # (B, D), (B, 6, D)

        run, chosen = run or self.run, range(self.config.num_layers) if blocks is None else blocks
        tables: list[Any] = [self.transformer_blocks[i].scale_shift_table for i in chosen]
        modulations = [*(torch.stack(tables)[:, None] + modulation)]  # (B, 6, D) a block
        norms: list[Norm] = [(*one[:, :2].chunk(2, dim=1), self.config.norm_eps) for one in modulations]
        norms += [(*(self.scale_shift_table + embedded[:, None]).chunk(2, dim=1), NORM_OUT_EPS)]  # (B, 1, D) twice
        normed = modulated_norm(x, *norms[0])  # (B, N, D)
        for i, own, following in zip(chosen, modulations, norms[1:], strict=True):
            block, prompts = self.transformer_blocks[i], (context.keys[i], context.values[i], context.bias)
            x, normed = run(block, x, normed, *prompts, own, following, rows, columns, context.prompts)

        out: Tensor = self.proj_out(normed)  # (B, N, P P C)
        out = out.reshape(B, rows, columns, P, P, C).permute(0, 5, 1, 3, 2, 4)  # (B, C, h/P, P, w/P, P)
        return out.reshape(B, C, h, w)
