"""The choice of the grid at the published tile size, and arrays as images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bestofn.judge.gpu_tiling import cut, resize
from bestofn.judge.judge import Judge, looked_up
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


@pytest.mark.parametrize(("width", "height"), [(64, 64), (512, 512), (640, 640), (300, 200), (96, 224)])
def test_a_device_cuts_the_same_tiles_bit_for_bit(width: int, height: int) -> None:
    mode = ImageMode("dynamic", 96, 1, 12, (0.5,) * 3, (0.5,) * 3, 1 / 255)
    random = np.random.default_rng(width)
    noise = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    edges = random.integers(0, 2, (1, height, width, 3), dtype=np.uint8) * 255  # the filter overshoots
    images = np.concatenate([noise, edges])
    assert np.array_equal(cut(mode, torch.from_numpy(images)), np.concatenate([mode.tiles(p) for p in images]))


def test_a_image_of_the_wanted_size_is_left_alone() -> None:
    image = torch.randint(0, 256, (1, 7, 5, 3), dtype=torch.uint8)
    assert torch.equal(resize(image, 5, 7), image)


def test_images_that_stay_on_the_device_get_the_same_verdicts() -> None:
    judge = Judge.load()
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    prompts = ["a photo of a red star"] * 3
    for one_tile in (False, True):
        here = judge.ask(list(images), prompts, one_tile=one_tile)
        assert torch.equal(judge.ask(torch.from_numpy(images), prompts, one_tile=one_tile), here)
