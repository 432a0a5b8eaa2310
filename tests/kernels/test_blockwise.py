"""Block-wise 8-bit numbers: how far they come back, and that nothing stays nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bestofn.kernels.blockwise_quant import BLOCK, blocks, dequantise, quantise, quantised_average

numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
# few kinds of numbers many times over, so that blocks are full and lists are short to shrink
tensors = st.tuples(st.lists(numbers, min_size=1, max_size=40), st.integers(0, 3 * BLOCK)).map(
    lambda drawn: torch.tensor(drawn[0] * (1 + drawn[1] // len(drawn[0])))
)


@settings(deadline=None, max_examples=150)
@given(tensors)
def test_numbers_come_back_within_the_bound_of_their_block(x):
    codes, scales = quantise(x)
    back = dequantise(codes, scales).double()
    s = scales.repeat_interleave(BLOCK)[: len(x)].double()
    assert len(scales) == blocks(len(x))
    bound = (s * x.double().abs()).sqrt() / 127 + s / 64516
    assert ((back - x.double()).abs() <= bound * 1.0001).all()
    assert (back * x.double() >= 0).all()
    assert (back[x == 0] == 0).all()
    assert torch.equal(codes, quantise(-x)[0].neg())


def test_a_mean_of_nothing_is_nothing_and_one_of_the_same_arrives():
    codes, scales = quantise(torch.zeros(3, 100))
    assert not quantised_average(torch.zeros(3, 100), codes, scales, 0.9)[0].any()
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        mean, codes, scales = quantised_average(x, codes, scales, 0.9)
    assert (mean - x).norm() < 0.05 * x.norm()


def test_a_number_that_is_not_finite_shows_in_its_block():
    x = torch.ones(2 * BLOCK)
    x[3] = torch.inf
    back = dequantise(*quantise(x))
    assert back[:BLOCK].isnan().any()
    assert (back[BLOCK:] == 1).all()


def test_nothing_at_all():
    assert dequantise(*quantise(torch.zeros(0, 5))).shape == (0, 5)
