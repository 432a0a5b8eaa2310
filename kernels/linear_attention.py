"""ReLU linear attention: softmax-free, linear in the number of tokens.

B batch, N tokens, D width = H heads x K channels per head.
"""

from torch import Tensor

# Added to the denominator, so that a query whose ReLU is all zero gives zero instead of NaN.
EPSILON = 1e-15


def relu_linear_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Non-causal attention with the kernel ``relu(q) . relu(k)`` (SANA, arXiv 2410.10629, section 2.2).

    For every head, with phi = ReLU and all sums over the N tokens j::

        o_i = (sum_j v_j phi(k_j)^T) phi(q_i) / (sum_j phi(k_j) . phi(q_i) + 1e-15)

    The numerator's K x K state and the denominator's K sums are formed once, so the cost is N K^2, not N^2 K.
    Accumulates in float32 whatever the inputs are: the sums run over all tokens and overflow float16.

    Args:
        query, key, value: (B, N, D), already normalised, before the ReLU.
        heads: H, a divisor of D.

    Returns:
        (B, N, D) in the query's dtype.
    """
    B, N, D = query.shape
    K = D // heads
    q = query.view(B, N, heads, K).transpose(1, 2).relu().float()  # (B, H, N, K)
    k = key.view(B, N, heads, K).transpose(1, 2).relu().float()  # (B, H, N, K)
    v = value.view(B, N, heads, K).transpose(1, 2).float()  # (B, H, N, K)
    state = k.transpose(2, 3) @ v  # (B, H, K, K)
    total = k.sum(dim=2, keepdim=True).transpose(2, 3)  # (B, H, K, 1)
    out: Tensor = (q @ state) / (q @ total + EPSILON)  # (B, H, N, K)
    return out.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, D)
