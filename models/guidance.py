"""Classifier-free guidance, row by row.

B slots, C channels, (h, w) latent grid.
"""

import torch
from torch import Tensor


def needs_negative(guidance_scale: float, embedded: bool) -> bool:
    """Whether a candidate takes a second forward for the negative prompt, as diffusers decides it.

    Args:
        guidance_scale: the request's guidance scale.
        embedded: the guidance is an input of the network (SANA-Sprint), which then needs no second forward.
    """
    return guidance_scale > 1.0 and not embedded


def guide(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): ``u + w (c - u)``; rows with w <= 1 keep the conditional output.

    Args:
        conditional, unconditional: (B, C, h, w) network outputs.
        scale: (B,) guidance scales w.

    Returns:
        (B, C, h, w) float32.
    """
    c, u = conditional.float(), unconditional.float()
    w = scale.to(c)[:, None, None, None]
    return torch.where(w > 1, u + w * (c - u), c)
