"""Embeddings of the transformer's inputs except the latent: position, timestep, guidance and caption.

B batch, N tokens, D width, L text tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bestofn.kernels.modulate import rms_norm

FREQUENCIES = 256  # channels of the sinusoidal timestep features
MAX_PERIOD = 10_000


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels with a learned weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return rms_norm(x, self.weight, self.eps)


def sinusoid(t: Tensor) -> Tensor:
    """Sinusoidal features of a scalar: ``[cos(t w_0..127), sin(t w_0..127)]``, w_i = 10000^(-i / 128).

    Args:
        t: (B,).

    Returns:
        (B, 256) float32.
    """
    half = FREQUENCIES // 2
    ramp = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(ramp * (-math.log(MAX_PERIOD) / half))  # (B, 128)
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class ScalarEmbedding(nn.Module):
    """Sinusoid, then a two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, D) in the weights' dtype."""
        features = sinusoid(t).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(features)))  # type: ignore[no-any-return]


class TimestepEmbedding(nn.Module):
    """Timestep -> its embedding and the six modulation rows that all blocks share (AdaLN-single, PixArt-alpha)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": ScalarEmbedding(width)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B,) -> embedding (B, D), modulation (B, 6, D); raises ValueError when a guidance is given."""
        if guidance is not None:
            raise ValueError("this checkpoint takes no guidance input (guidance_embeds is false)")
        embedded = self.emb["timestep_embedder"](timestep)
        return embedded, self.linear(F.silu(embedded)).unflatten(-1, (6, -1))


class TimestepGuidanceEmbedding(nn.Module):
    """Timestep and guidance scale -> their summed embedding and the six modulation rows (SANA-Sprint)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = ScalarEmbedding(width)
        self.guidance_embedder = ScalarEmbedding(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B,), (B,) -> embedding (B, D), modulation (B, 6, D); raises ValueError without a guidance."""
        if guidance is None:
            raise ValueError("this checkpoint needs a guidance input (guidance_embeds is true)")
        embedded = self.timestep_embedder(timestep) + self.guidance_embedder(guidance)
        return embedded, self.linear(F.silu(embedded)).unflatten(-1, (6, -1))


class CaptionProjection(nn.Module):
    """Text encoder's states -> tokens of the transformer's width."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, caption: Tensor) -> Tensor:
        """(B, L, caption channels) -> (B, L, D)."""
        return self.linear_2(F.gelu(self.linear_1(caption), approximate="tanh"))  # type: ignore[no-any-return]


def position_embedding(
    width: int, rows: int, columns: int, base: int, interpolation_scale: float, device: torch.device
) -> Tensor:
    """Two-dimensional sinusoidal positions, stretched so that every grid spans ``base / interpolation_scale``.

    Half the channels encode the column, half the row, each as ``[sin, cos]`` with w_i = 10000^(-i / (D / 4)).

    Args:
        width: D, a multiple of 4.
        rows, columns: token grid.
        base: side of the grid that the model was made for.
        interpolation_scale: the checkpoint's.
        device: device of the computation, so that a recorded forward repeats it.

    Returns:
        (1, rows * columns, D) float32.
    """
    ramp = torch.arange(width // 4, dtype=torch.float64, device=device)
    frequency = 1.0 / MAX_PERIOD ** (ramp / (width / 4.0))  # (D / 4,)

    def axis(size: int) -> Tensor:
        place = torch.arange(size, dtype=torch.float32, device=device) / (size / base) / interpolation_scale
        phase = torch.outer(place.double(), frequency)
        return torch.cat([phase.sin(), phase.cos()], dim=1).float()  # (size, D / 2)

    column = axis(columns)[None].expand(rows, -1, -1)  # (rows, columns, D / 2)
    row = axis(rows)[:, None].expand(-1, columns, -1)  # (rows, columns, D / 2)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None]
