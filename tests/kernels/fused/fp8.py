"""Rows of 8-bit floats against their reference."""

import pytest
import torch

from bestofn.kernels import fp8
from bestofn.kernels.fused import fp8 as fused
from tests.kernels.fused.common import DEVICE, dtypes, noise

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="a GPU without 8-bit floats"
)

# id: R, K
ROWS = {"one": (1, 1), "ragged": (5, 24), "block": (3, 64), "sana_width": (2, 2240)}


@dtypes
@pytest.mark.parametrize("name", ROWS)
def test_quantize_fp8_rowwise(name, dtype):
    x = noise(*ROWS[name], dtype=dtype)
    x[:, ::7] = 0
    if len(x) > 1:
        x[0] = 0
    (codes, scales), (wanted, of) = fused.quantize_fp8_rowwise(x), fp8.quantize_fp8_rowwise(x)
    assert codes.dtype == wanted.dtype
    assert torch.allclose(scales, of, rtol=1e-6, atol=0)
    apart = (codes.view(torch.int8).int() - wanted.view(torch.int8).int()).abs()
    if DEVICE == "cpu":  # where a mantissa is rounded up to 2, the interpreter forgets to raise the exponent
        apart[wanted.view(torch.int8) % 8 == 0] = 0
    assert apart.max() <= 1, "only a number that lies between two codes may go to either"
    assert (apart != 0).float().mean() < 0.01
    assert not codes.float()[x == 0].any()


def test_a_row_has_the_same_bits_in_every_batch():
    x = noise(3, 40)
    both = [fused.quantize_fp8_rowwise(rows) for rows in (x, x[-1:].clone())]
    assert torch.equal(both[0][0][-1:].view(torch.int8), both[1][0].view(torch.int8))
    assert torch.equal(both[0][1][-1:], both[1][1])
