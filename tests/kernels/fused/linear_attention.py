"""ReLU linear attention against its reference."""

import pytest
import torch

from bestofn.kernels import linear_attention
from bestofn.kernels.fused import linear_attention as fused
from tests.kernels.fused.common import DEVICE, EPS, check, check_alone, dtypes, noise

# id: B, N, H, K
ATTENTION = {
    "one_token": (1, 1, 1, 8),
    "ragged_tokens": (2, 17, 3, 16),
    "ragged_head": (1, 65, 3, 5),
    "several_blocks": (1, 150, 2, 32),
}


@dtypes
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize("name", ATTENTION)
def test_relu_linear_attention(name, normed, dtype):
    B, N, H, K = ATTENTION[name]
    weights = [noise(H * K, dtype=dtype) if normed else None for _ in "qk"]
    args = [*(noise(B, N, H * K, dtype=dtype) for _ in "qkv"), H, *weights, EPS]
    check(fused.relu_linear_attention, linear_attention.relu_linear_attention, args)


@dtypes
def test_linear_attention_of_dead_faint_and_loud_queries(dtype):
    q, k, v = (noise(1, 6, 32, dtype=dtype) for _ in "qkv")
    q[0, 0] = -1.0
    q[0, 1] *= 1e-3
    q[0, 2] *= 1e4
    ones = torch.ones(32, dtype=dtype, device=DEVICE)
    args = [q, k, v, 2, ones, ones, EPS]
    check(fused.relu_linear_attention, linear_attention.relu_linear_attention, args)
    assert not fused.relu_linear_attention(*args)[0, 0].any()


@pytest.mark.parametrize("parts", [3, 4], ids=["one_stride", "several_strides"])
def test_linear_attention_of_parts_of_one_product(parts):
    q, k, v = noise(2, 20, parts * 32).chunk(parts, dim=-1)[:3]
    v = v if parts == 3 else v.contiguous()
    weight = noise(32)
    check(fused.relu_linear_attention, linear_attention.relu_linear_attention, [q, k, v, 2, weight, weight, EPS])


def test_a_row_has_the_same_bits_in_every_batch():
    weight = noise(24)
    check_alone(fused.relu_linear_attention, [*(noise(3, 70, 24) for _ in "qkv"), 2, weight, weight, EPS])
