"""Cross-attention of many candidates to few prompts, over each prompt's true length alone.

B rows of candidates, P prompts, N tokens of an image, L padded text tokens, W width = H heads x K channels per head.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestofn.kernels.fused.linear_attention import precision
from bestofn.kernels.fused.rows import in_rows, inverse_rms

# A bias at or below this gives a weight of zero in float32 next to any token without a bias.
UNSEEN = -5_000.0
LAUNCH = {"BLOCK_N": 64, "BLOCK_L": 32, "num_warps": 4, "num_stages": 2}


@triton.jit
def cross_attention_kernel(
    query,  # (B, N, W)
    rms,  # (B, N) float32, the queries' inverse RMS, or None: queries are normalised already
    weight,  # (W,) or None
    keys,  # (P, H, L, K)
    values,  # (P, H, L, K)
    bias,  # (P, L)
    prompts,  # (B,) integer, or None: row b reads prompt b
    out,  # out (B, N, W)
    key_prompt,
    key_head,
    key_token,
    value_prompt,
    value_head,
    value_token,
    bias_prompt,
    N,
    L,
    W,
    K,
    scale,
    UNSEEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    i_h, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_p = i_b
    if prompts is not None:
        i_p = tl.load(prompts + i_b).to(tl.int64)
    p_bias = bias + i_p * bias_prompt

    # the true length ends with the last token that is seen; where none is, all count alike, as in the reference
    o_t = tl.arange(0, BLOCK_T)
    b_seen = tl.load(p_bias + o_t, mask=o_t < L, other=UNSEEN).to(tl.float32) > UNSEEN
    length = tl.max(tl.where(b_seen, o_t + 1, 0), 0)
    length = tl.where(length == 0, L, length)

    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    o_nk = o_n[:, None] * W + (i_h * K + o_k)[None, :]
    m_nk = m_n[:, None] & m_k[None, :]
    b_q = tl.load(query + i_b * N * W + o_nk, mask=m_nk, other=0.0)
    if rms is not None:
        b_rms = tl.load(rms + i_b * N + o_n, mask=m_n, other=0.0)
        b_weight = tl.load(weight + i_h * K + o_k, mask=m_k, other=0.0).to(tl.float32)
        b_q = (b_q.to(tl.float32) * b_rms[:, None] * b_weight[None, :]).to(query.dtype.element_ty)

    p_keys = keys + i_p * key_prompt + i_h * key_head
    p_values = values + i_p * value_prompt + i_h * value_head
    b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_N,), tl.float32)
    b_out = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for i_l in range(0, length, BLOCK_L):
        o_l = i_l + tl.arange(0, BLOCK_L)
        m_l = o_l < length
        m_lk = m_l[:, None] & m_k[None, :]
        b_k = tl.load(p_keys + o_l[:, None] * key_token + o_k[None, :], mask=m_lk, other=0.0)
        b_v = tl.load(p_values + o_l[:, None] * value_token + o_k[None, :], mask=m_lk, other=0.0)
        b_bias = tl.load(p_bias + o_l, mask=m_l, other=0.0).to(tl.float32) * 1.4426950408889634
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_bias[None, :]
        b_score = tl.where(m_l[None, :], b_score, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_score, 1))
        b_weights = tl.exp2(b_score - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_weights, 1)
        b_out = b_out * b_shrink[:, None]
        b_out = tl.dot(b_weights.to(values.dtype.element_ty), b_v, b_out, input_precision=PRECISION)
        b_max = b_new
    b_out = b_out / b_sum[:, None]
    tl.store(out + i_b * N * W + o_nk, b_out.to(out.dtype.element_ty), mask=m_nk)


def cross_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    eps: float,
    prompts: Tensor | None,
) -> Tensor:
    """See `bestofn.kernels.cross_attention.cross_attention`."""
    query = query.contiguous()
    keys, values, bias = (t if t.stride(-1) == 1 else t.contiguous() for t in (keys, values, bias))
    B, N, W = query.shape
    H, L, K = keys.shape[1:]
    out = torch.empty_like(query)
    if not query.numel():
        return out
    rms = None if weight is None else inverse_rms(in_rows(query), eps)
    cross_attention_kernel[(H, triton.cdiv(N, LAUNCH["BLOCK_N"]), B)](
        query,
        rms,
        weight,
        keys,
        values,
        bias,
        prompts,
        out,
        *keys.stride()[:3],
        *values.stride()[:3],
        bias.stride(0),
        N,
        L,
        W,
        K,
        math.log2(math.e) / math.sqrt(K),
        UNSEEN=UNSEEN,
        PRECISION=precision(query.dtype),
        BLOCK_K=max(16, triton.next_power_of_2(K)),
        BLOCK_T=triton.next_power_of_2(L),
        **LAUNCH,
        enable_fp_fusion=True,
    )
    return out
