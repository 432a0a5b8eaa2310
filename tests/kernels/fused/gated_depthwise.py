"""The gated depthwise convolution against its reference."""

import pytest
import torch

from bestofn.kernels import gated_depthwise
from bestofn.kernels.fused import gated_depthwise as fused
from tests.kernels.fused.common import check, check_alone, dtypes, noise

# id: B, height, width, F, whether there is a bias
IMAGES = {
    "one_pixel": (1, 1, 1, 3, True),
    "ragged": (2, 3, 5, 4, True),
    "two_walks_of_a_strip": (1, 10, 2, 7, False),
    "two_blocks_of_channels": (1, 2, 3, 260, True),
}


@dtypes
@pytest.mark.parametrize("name", IMAGES)
def test_gated_depthwise(name, dtype):
    B, height, width, F, biased = IMAGES[name]
    bias = noise(2 * F, dtype=dtype) if biased else None
    args = [noise(B, height * width, 2 * F, dtype=dtype), noise(2 * F, 1, 3, 3, dtype=dtype), bias, height, width]
    check(fused.gated_depthwise, gated_depthwise.gated_depthwise, args)


def test_the_length_of_a_walk_changes_no_bit():
    args = [noise(1, 12, 8), noise(8, 1, 3, 3), None, 4, 3]
    assert torch.equal(fused.launch(*args, rows=3), fused.launch(*args, rows=4))


def test_a_image_has_the_same_bits_in_every_batch():
    check_alone(fused.gated_depthwise, [noise(2, 6, 10), noise(10, 1, 3, 3), None, 2, 3])
