"""Cross-attention: the tokens of many candidates read the keys and values of few prompts.

B rows of candidates, P prompts, N tokens of an image, L text tokens, W width = H heads x K channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bestofn.kernels.dispatch import fused
from bestofn.kernels.modulate import like, rms_norm


def _flops(query: torch.Size, keys: torch.Size, *_: object, **__: object) -> int:
    """FLOPs over the padded length: true lengths are data and not part of a shape."""
    B, N, W = query
    return 4 * B * N * W * keys[2]


@fused(fake=like, flops=_flops)
def cross_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    prompts: Tensor | None = None,
) -> Tensor:
    """Softmax attention, per head and row, with q first taken through `rms_norm` over all heads where it has weights::

        o_i = softmax_l(q_i . k_l / sqrt(K) + bias_l) v_l

    Args:
        query: (B, N, W).
        keys, values: (P, H, L, K), normalised.
        bias: (P, 1, 1, L), 0 for text and -10,000 for padding. The weight of padding underflows to exactly zero, so
            tokens after the last text token need not be read.
        weight: (W,) weight of the queries' norm.
        eps: added to the norm's mean square.
        prompts: (B,), the prompt that each row reads; None: P = B and row b reads prompt b.

    Returns:
        (B, N, W) in the query's dtype.
    """
    q = query if weight is None else rms_norm(query, weight, eps)  # (B, N, W)
    if prompts is not None:
        keys, values, bias = (t.index_select(0, prompts) for t in (keys, values, bias))
    q = q.view(*q.shape[:2], keys.shape[1], -1).transpose(1, 2)  # (B, H, N, K)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)  # (B, H, N, K)
    return out.transpose(1, 2).flatten(2)  # (B, N, W)
