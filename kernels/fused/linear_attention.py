"""ReLU linear attention: the keys' inverse RMS, one state a head, then the read-out; no float32 copy of q, k or v.

B batch, N tokens, D width = H heads x K channels per head.

The query's inverse RMS is positive and multiplies numerator and denominator alike, so it is never computed. Only the
reference's epsilon would notice: where a query's sum of scores, normalised or not, is below some 1e-8.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bestofn.kernels.fused.rows import in_rows, inverse_rms
from bestofn.kernels.linear_attention import EPSILON

# Neighbouring programs take neighbouring heads, whose channels share lines of memory.
STATE_LAUNCH = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 4}
READ_OUT_LAUNCH = {"BLOCK_N": 128, "num_warps": 8}


@triton.jit
def state_kernel(
    key,  # (B, N, D)
    value,  # (B, N, D)
    rms,  # (B, N) float32, the keys' inverse RMS, or None: keys are normalised already
    weight,  # (D,) or None
    state,  # out (B, H, K + 1, K) float32: K rows of phi(k)^T v, then the sum of phi(k)
    row,  # stride from token to token of key and value
    N,
    K,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    if rms is not None:
        b_weight = tl.load(weight + i_h * K + o_k, mask=m_k, other=0.0).to(tl.float32)

    b_state = tl.zeros((BLOCK_K, BLOCK_K), tl.float32)
    b_total = tl.zeros((BLOCK_K,), tl.float32)
    for i_n in range(0, N, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        o_nk = o_n[:, None] * row + (i_h * K + o_k)[None, :]
        m_nk = m_n[:, None] & m_k[None, :]
        b_k = tl.load(key + i_b * N * row + o_nk, mask=m_nk, other=0.0).to(tl.float32)
        if rms is not None:
            b_k *= tl.load(rms + i_b * N + o_n, mask=m_n, other=0.0)[:, None] * b_weight[None, :]
        b_k = tl.maximum(b_k, 0.0).to(key.dtype.element_ty)  # rounded as the reference's norm does
        b_v = tl.load(value + i_b * N * row + o_nk, mask=m_nk, other=0.0)
        b_state = tl.dot(tl.trans(b_k), b_v, b_state, input_precision=PRECISION)
        b_total += tl.sum(b_k.to(tl.float32), 0)

    p_state = state + (i_b * tl.num_programs(0) + i_h) * (K + 1) * K
    tl.store(p_state + o_k[:, None] * K + o_k[None, :], b_state, mask=m_k[:, None] & m_k[None, :])
    tl.store(p_state + K * K + o_k, b_total, mask=m_k)


@triton.jit
def read_out_kernel(
    query,  # (B, N, D)
    weight,  # (D,) or None
    state,  # (B, H, K + 1, K) float32
    out,  # out (B, N, D)
    row,  # stride from token to token of query
    N,
    D,
    K,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_h, i_n, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_hk = (i_h * K + o_k)[None, :]
    m_nk = (o_n < N)[:, None] & m_k[None, :]

    b_q = tl.load(query + i_b * N * row + o_n[:, None] * row + o_hk, mask=m_nk, other=0.0).to(tl.float32)
    if weight is not None:
        b_q *= tl.load(weight + i_h * K + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
    b_q = tl.maximum(b_q, 0.0)

    p_state = state + (i_b * tl.num_programs(0) + i_h) * (K + 1) * K
    m_kk = m_k[:, None] & m_k[None, :]
    b_state = tl.load(p_state + o_k[:, None] * K + o_k[None, :], mask=m_kk, other=0.0)
    b_total = tl.load(p_state + K * K + o_k, mask=m_k, other=0.0)
    b_top = tl.dot(b_q, b_state, input_precision=PRECISION)
    b_out = b_top / (tl.sum(b_q * b_total[None, :], 1) + EPSILON)[:, None]
    tl.store(out + i_b * N * D + o_n[:, None] * D + o_hk, b_out.to(out.dtype.element_ty), mask=m_nk)


def precision(dtype: torch.dtype) -> str:
    """Of a product with float32 operands. Tensor cores cut them off at 11 bits, which makes every product smaller, so
    each operand is split in two."""
    return "ieee" if dtype == torch.float32 else "tf32x3"


def relu_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
) -> Tensor:
    """See `bestofn.kernels.linear_attention.relu_linear_attention`."""
    B, N, D = query.shape
    K = D // heads
    out = torch.empty(B, N, D, dtype=query.dtype, device=query.device)
    parts = [in_rows(part) for part in (query, key, value)]
    if len({part.stride(0) for part in parts}) > 1:
        parts = [part.contiguous() for part in parts]
    query, key, value = parts
    row = query.stride(0)
    state = torch.empty(B, heads, K + 1, K, dtype=torch.float32, device=query.device)
    if not query.numel():
        return out
    options = {
        "PRECISION": precision(query.dtype),
        "BLOCK_K": max(16, triton.next_power_of_2(K)),
        "enable_fp_fusion": True,
    }
    rms = None if key_weight is None else inverse_rms(key, eps)
    state_kernel[(heads, B)](key, value, rms, key_weight, state, row, N, K, **STATE_LAUNCH, **options)
    grid = (heads, triton.cdiv(N, READ_OUT_LAUNCH["BLOCK_N"]), B)
    read_out_kernel[grid](query, query_weight, state, out, row, N, D, K, EPSILON, **READ_OUT_LAUNCH, **options)
    return out
