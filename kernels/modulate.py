"""Normalisation and modulation: the row-wise operators around the matrix products.

B batch, N tokens, D width. All compute in float32 and round once, to the dtype of their first argument.
What an operator made itself it changes in place: fresh memory costs a CPU more than arithmetic does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bestofn.kernels.dispatch import fused


def like(x: Tensor, *_: object) -> Tensor:
    """The empty result of an operator whose output has the shape and dtype of its first argument."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _twice_like(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return like(x), like(x)


@fused(fake=like)
def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Adaptive layer norm (DiT, arXiv 2212.09748, section 3.2)::

        y = layer_norm(x) * (1 + scale) + shift

    Args:
        x: (B, N, D).
        shift, scale: (B, 1, D), from the timestep.
        eps: added to the variance.
        weight, bias: (D,) of an affine layer norm, usually absent.

    Returns:
        (B, N, D) in x's dtype.
    """
    affine = (None if weight is None else weight.float(), None if bias is None else bias.float())
    normed = F.layer_norm(x.float(), x.shape[-1:], *affine, eps)
    return normed.mul_(1 + scale.float()).add_(shift.float()).to(x.dtype)


@fused(fake=like)
def gated_residual(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """``y = x + gate * update``: the end of an adaptively modulated branch.

    Args:
        x, update: (B, N, D).
        gate: (B, 1, D), from the timestep.

    Returns:
        (B, N, D) in x's dtype.
    """
    return torch.addcmul(x.float(), gate.float(), update.float()).to(x.dtype)


@fused(fake=_twice_like)
def residual_norm(
    x: Tensor,
    gate: Tensor | None,
    update: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The end of one branch and the beginning of the next, of whose norm ``y`` is read only once::

        y = x + gate * update
        h = modulated_norm(y, shift, scale)

    Args:
        x, update: (B, N, D).
        gate: (B, 1, D), or None for a residual without one.
        shift, scale, eps, weight, bias: the norm's, as in `modulated_norm`.

    Returns:
        y and h, (B, N, D) in x's dtype; h is taken of y as rounded.
    """
    y = x + update if gate is None else gated_residual(x, gate, update)
    return y, modulated_norm(y, shift, scale, eps, weight, bias)


@fused(fake=like)
def rms_norm(
    x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Root-mean-square norm over the last axis (arXiv 1910.07467), and what DC-AE's decoder adds to it::

        y = x / sqrt(mean(x^2) + eps) * weight + bias + residual

    Args:
        x: (..., D).
        weight: (D,).
        eps: added to the mean square.
        bias: (D,) or None.
        residual: (..., D) or None.

    Returns:
        (..., D) in x's dtype.
    """
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    out = (wide * inverse).mul_(weight.float())
    for term in (bias, residual):
        if term is not None:
            out.add_(term.float())
    return out.to(x.dtype)
