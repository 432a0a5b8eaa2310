"""The reference operators against their equations, written as loops in float64."""

import pytest
import torch

from bestofn.kernels.gated_depthwise import gated_depthwise
from bestofn.kernels.linear_attention import EPSILON, relu_linear_attention
from bestofn.kernels.modulate import gated_residual, modulated_norm, rms_norm

# float32 keeps 24 bits; the narrow types round inputs (exact here) and the result once
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("B", "N", "H", "K"), [(1, 1, 1, 8), (2, 17, 3, 16), (3, 64, 2, 5)])
def test_linear_attention_is_its_sum(B, N, H, K, dtype):
    q, k, v = (torch.randn(B, N, H * K, dtype=dtype) for _ in range(3))
    k[:, 0] = k[:, 0].abs()  # or a lone pair might have nothing in common, and its sum be zero
    wanted = torch.zeros(B, N, H * K, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            s = slice(h * K, (h + 1) * K)
            weight = q[b, :, s].double().relu() @ k[b, :, s].double().relu().T  # (N, N)
            wanted[b, :, s] = weight @ v[b, :, s].double() / (weight.sum(1, keepdim=True) + EPSILON)
    got = relu_linear_attention(q, k, v, H)
    assert got.dtype == dtype
    assert error(got, wanted) < TOLERANCE[dtype]


def test_linear_attention_of_a_dead_query_is_zero_and_large_sums_do_not_overflow_half():
    q, k, v = -torch.ones(1, 4, 8), torch.ones(1, 4, 8), torch.ones(1, 4, 8)
    assert not relu_linear_attention(q, k, v, 1).any()
    big = torch.full((1, 4096, 8), 60.0, dtype=torch.float16)
    assert torch.equal(relu_linear_attention(big, big, big, 1), big)


@pytest.mark.parametrize(("B", "h", "w", "F"), [(1, 1, 1, 3), (2, 3, 5, 4), (1, 6, 2, 7)])
def test_gated_depthwise_is_its_sum(B, h, w, F):
    hidden, weight, bias = torch.randn(B, h * w, 2 * F), torch.randn(2 * F, 1, 3, 3), torch.randn(2 * F)
    s = (hidden * hidden.sigmoid()).double().reshape(B, h, w, 2 * F)
    y = bias.double().expand(B, h, w, 2 * F).clone()
    for row in range(h):
        for column in range(w):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    if 0 <= row + dr < h and 0 <= column + dc < w:
                        y[:, row, column] += weight[:, 0, dr + 1, dc + 1] * s[:, row + dr, column + dc]
    value, gate = y.reshape(B, h * w, 2 * F).chunk(2, -1)
    assert error(gated_depthwise(hidden, weight, bias, h, w), value * gate * gate.sigmoid()) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_row_operators_are_their_equations(dtype):
    x, y = torch.randn(2, 5, 24, dtype=dtype), torch.randn(2, 5, 24, dtype=dtype)
    shift, scale, weight = torch.randn(2, 1, 24, dtype=dtype), torch.randn(2, 1, 24, dtype=dtype), torch.randn(24)
    X, Y, S, C, W = (t.double() for t in (x, y, shift, scale, weight))
    centred = X - X.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert error(modulated_norm(x, shift, scale, 1e-6), normed * (1 + C) + S) < TOLERANCE[dtype]
    assert (
        error(modulated_norm(x, shift, scale, 1e-6, weight, weight), (normed * W + W) * (1 + C) + S) < TOLERANCE[dtype]
    )
    assert error(gated_residual(x, scale, y), X + C * Y) < TOLERANCE[dtype]
    scaled = X / (X.square().mean(-1, keepdim=True) + 1e-5).sqrt() * W
    assert error(rms_norm(x, weight, 1e-5), scaled) < TOLERANCE[dtype]
    assert error(rms_norm(x, weight, 1e-5, weight, y), scaled + W + Y) < TOLERANCE[dtype]
