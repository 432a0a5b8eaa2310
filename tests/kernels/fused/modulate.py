"""Residual, norm and modulation against their references."""

import pytest
import torch

from bestofn.kernels import modulate
from bestofn.kernels.fused import modulate as fused
from tests.kernels.fused.common import check, check_alone, dtypes, noise, row

# id: B, N, D
ROWS = {"one_channel": (1, 1, 3), "ragged": (2, 5, 24), "block": (3, 1, 64), "sana_width": (1, 2, 2240)}


@dtypes
@pytest.mark.parametrize("affine", [(False, False), (True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_modulated_norm(name, affine, dtype):
    B, N, D = ROWS[name]
    weight, bias = (noise(D, dtype=dtype) if given else None for given in affine)
    args = [noise(B, N, D, dtype=dtype), row(B, D, dtype), row(B, D, dtype), 1e-6, weight, bias]
    check(fused.modulated_norm, modulate.modulated_norm, args)


@dtypes
@pytest.mark.parametrize("name", ROWS)
def test_gated_residual(name, dtype):
    B, N, D = ROWS[name]
    args = [noise(B, N, D, dtype=dtype), row(B, D, dtype), noise(B, N, D, dtype=dtype)]
    check(fused.gated_residual, modulate.gated_residual, args)


@dtypes
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("name", ROWS)
def test_residual_norm(name, gated, dtype):
    B, N, D = ROWS[name]
    gate = row(B, D, dtype) if gated else None
    x, update = (noise(B, N, D, dtype=dtype) for _ in "xu")
    args = [x, gate, update, row(B, D, dtype), row(B, D, dtype), 1e-6, None, None]
    check(fused.residual_norm, modulate.residual_norm, args)


@dtypes
@pytest.mark.parametrize("added", [(False, False), (True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rms_norm(name, added, dtype):
    B, N, D = ROWS[name]
    bias = noise(D, dtype=dtype) if added[0] else None
    residual = noise(B, N, D, dtype=dtype) if added[1] else None
    args = [noise(B, N, D, dtype=dtype), noise(D, dtype=dtype), 1e-5, bias, residual]
    check(fused.rms_norm, modulate.rms_norm, args)


def test_a_token_has_the_same_bits_in_every_batch():
    x, shift, scale = noise(3, 4, 24), row(3, 24, torch.float32), row(3, 24, torch.float32)
    check_alone(fused.modulated_norm, [x, shift, scale, 1e-6, None, None])
    check_alone(fused.rms_norm, [x, noise(24), 1e-5, None, x])
