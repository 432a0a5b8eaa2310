"""Block-wise 8-bit numbers against their reference, and a block that is not finite."""

import pytest
import torch

from bestofn.kernels import blockwise_quant as blockwise
from bestofn.kernels.fused import blockwise_quant as fused
from tests.kernels.fused.common import DEVICE, TOLERANCE, dtypes, noise

SIZES = {"one": 1, "ragged": 700, "block": 256, "two_programs": 256 * 17 + 3}


def check_codes(codes, scales, wanted, x):
    """A share that lies between two codes may go to either."""
    assert codes.shape == x.shape
    assert (codes.int() - wanted[0].int()).abs().max() <= 1
    assert (codes != wanted[0]).float().mean() < 0.01
    assert torch.allclose(scales, wanted[1], rtol=1e-6)
    assert not codes.flatten()[x.flatten() == 0].any()


@dtypes
@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
def test_quantise_and_back(n, dtype):
    x = noise(n, dtype=dtype)
    x[::7] = 0
    codes, scales = fused.quantise(x)
    check_codes(codes, scales, blockwise.quantise(x), x)
    got, wanted = fused.dequantise(codes, scales), blockwise.dequantise(codes, scales)
    assert torch.allclose(got, wanted, rtol=1e-6, atol=0)


@dtypes
@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
def test_quantised_average(n, dtype):
    x, before = noise(n, dtype=dtype), blockwise.quantise(noise(n))
    mean, codes, scales = fused.quantised_average(x, *before, 0.9)
    wanted = blockwise.quantised_average(x, *before, 0.9)
    assert (mean - wanted[0]).norm() < TOLERANCE[torch.float32] * wanted[0].norm()
    check_codes(codes, scales, wanted[1:], mean)


def test_zeros_stay_and_a_broken_block_breaks_no_other():
    x = torch.zeros(600, device=DEVICE)
    assert not fused.dequantise(*fused.quantise(x)).any()
    x[300] = torch.nan
    broken = fused.dequantise(*fused.quantise(x)).isnan()
    assert broken[256:512].all()
    assert broken.sum() == 256
