"""ReLU linear attention: softmax-free, linear in the number of tokens.

B batch, N tokens, D width = H heads x K channels per head.
"""

import torch
from torch import Tensor

from bestofn.kernels.dispatch import fused
from bestofn.kernels.modulate import like, rms_norm

# Added to the denominator, so that a query whose ReLU is all zero gives zero instead of NaN.
EPSILON = 1e-15


def _flops(query: torch.Size, key: torch.Size, value: torch.Size, heads: int, *_: object, **__: object) -> int:
    B, N, D = query
    return 2 * B * N * D * (2 * D // heads + 1)


@fused(fake=like, flops=_flops)
def relu_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Non-causal attention with the kernel ``relu(q) . relu(k)`` (SANA, arXiv 2410.10629, section 2.2).

    For every head, with phi = ReLU and all sums over the N tokens j::

        o_i = (sum_j v_j phi(k_j)^T) phi(q_i) / (sum_j phi(k_j) . phi(q_i) + 1e-15)

    with q and k first taken through `rms_norm` over all heads where there are weights for it.

    The numerator's K x K state and the denominator's K sums are formed once, so the cost is N K^2, not N^2 K.
    Accumulates in float32 whatever the inputs are: the sums run over all tokens and overflow float16.

    Args:
        query, key, value: (B, N, D), before norm and ReLU.
        heads: H, a divisor of D.
        query_weight, key_weight: (D,), of the norm; None where there is none or it was done.
        eps: added to the norm's mean square.

    Returns:
        (B, N, D) in the query's dtype.
    """
    B, N, D = query.shape
    K = D // heads
    query = query.relu() if query_weight is None else rms_norm(query, query_weight, eps).relu_()  # (B, N, D)
    key = key.relu() if key_weight is None else rms_norm(key, key_weight, eps).relu_()  # (B, N, D)
    q = query.view(B, N, heads, K).transpose(1, 2).float()  # (B, H, N, K)
    k = key.view(B, N, heads, K).transpose(1, 2).float()  # (B, H, N, K)
    v = value.view(B, N, heads, K).transpose(1, 2).float()  # (B, H, N, K)
    state = k.transpose(2, 3) @ v  # (B, H, K, K)
    total = k.sum(dim=2, keepdim=True).transpose(2, 3)  # (B, H, K, 1)
    out: Tensor = (q @ state).div_(q @ total + EPSILON)  # (B, H, N, K)
    return out.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, D)
