"""The choice of the grid at the published tile size, and arrays as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bestofn.judge.judge import looked_up
from bestofn.judge.preprocess import ImageMode

PUBLISHED = ImageMode("dynamic", 448, 1, 12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((512, 512), (1, 1)),
        ((633, 633), (1, 1)),
        ((634, 634), (2, 2)),
        ((896, 896), (2, 2)),
        ((1024, 1024), (3, 3)),
        ((2048, 2048), (3, 3)),
        ((1024, 576), (2, 1)),
        ((1280, 720), (4, 2)),
        ((832, 1216), (2, 3)),
        ((1216, 832), (3, 2)),
    ],
    ids=lambda x: "x".join(map(str, x)),
)
def test_grid_of_the_published_mode(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert PUBLISHED.grid(*size) == grid
    assert PUBLISHED.count(*size) == grid[0] * grid[1] + (grid != (1, 1))


def test_unknown_modes_are_refused() -> None:
    preprocessor = {"size": {"height": 8, "width": 8}, "image_mean": [0] * 3, "image_std": [1] * 3, "rescale_factor": 1}
    assert ImageMode.read({"image_aspect_ratio": "resize"}, preprocessor).count(1024, 512) == 1
    with pytest.raises(ValueError, match="'pad' is not supported"):
        ImageMode.read({"image_aspect_ratio": "pad"}, preprocessor)
    with pytest.raises(ValueError, match="dynamic_s2 is not supported"):
        ImageMode.read({"dynamic_s2": True}, preprocessor)
    with pytest.raises(ValueError, match="must be square"):
        ImageMode.read({}, preprocessor | {"size": {"height": 8, "width": 9}})
    with pytest.raises(ValueError, match="positive sides, got 0x4"):
        PUBLISHED.grid(0, 4)


def test_a_device_looks_up_the_same_pixel_values() -> None:
    mode = ImageMode("dynamic", 8, 1, 12, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), 1 / 255)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    ours = looked_up(torch.from_numpy(mode.levels.copy()), torch.from_numpy(tiles))
    assert np.array_equal(ours.numpy(), mode.pixels(tiles))
