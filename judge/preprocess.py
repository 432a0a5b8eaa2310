"""From an image to the tiles and pixel values that the judge sees, bit for bit as the published code.

Letters: n tiles, S tile side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageLike = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class ImageMode:
    """How an image of any size becomes tiles of S x S pixels.

    `dynamic` (InternVL tiling) stretches the image and cuts it into a grid of tiles. It adds a thumbnail if the
    grid has more than one tile. `resize` stretches every image to one tile.

    Attributes:
        aspect: `dynamic` or `resize`.
        size: S.
        min_tiles: least number of grid cells.
        max_tiles: greatest number of grid cells; the thumbnail comes on top.
        mean: per channel, of values in 0..1.
        std: per channel.
        rescale: what one level of a byte is worth.
    """

    aspect: Literal["dynamic", "resize"]
    size: int
    min_tiles: int
    max_tiles: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    def __post_init__(self) -> None:
        if self.aspect not in ("dynamic", "resize"):
            raise ValueError(f"image_aspect_ratio {self.aspect!r} is not supported, only 'dynamic' and 'resize' are")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(f"tiles must satisfy 1 <= min <= max, got min {self.min_tiles}, max {self.max_tiles}")

    @classmethod
    def read(
        cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], max_tiles: int | None = None
    ) -> ImageMode:
        """Reads `config.json` and `vision_tower/preprocessor_config.json` of a VILA folder.

        Args:
            config: the top configuration.
            preprocessor: the vision tower's.
            max_tiles: replaces the folder's limit, to judge large images cheaper on fewer tiles.

        Raises:
            ValueError: a mode this judge does not know.
        """
        for name in ("s2", "dynamic_s2"):
            if config.get(name):
                raise ValueError(f"{name} is not supported, only image_aspect_ratio 'dynamic' and 'resize' are")
        size = preprocessor.get("crop_size") or preprocessor["size"]
        if size["height"] != size["width"]:
            raise ValueError(f"tiles must be square, preprocessor_config.json says {size['height']}x{size['width']}")
        most = int(config.get("max_tiles", 12)) if max_tiles is None else max_tiles
        return cls(
            aspect=config.get("image_aspect_ratio", "dynamic"),
            size=int(size["height"]),
            min_tiles=min(int(config.get("min_tiles", 1)), most),
            max_tiles=most,
            mean=tuple(preprocessor["image_mean"]),
            std=tuple(preprocessor["image_std"]),
            rescale=float(preprocessor["rescale_factor"]),
        )

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows) whose ratio is closest to the image's.

        On an exactly equal difference the grid with more cells wins if the image has more than half its pixels.

        Raises:
            ValueError: a side is not positive.
        """
        if width < 1 or height < 1:
            raise ValueError(f"an image needs positive sides, got {width}x{height}")
        if self.aspect == "resize":
            return 1, 1
        cells = range(1, self.max_tiles + 1)
        grids = [(i, j) for i in cells for j in cells if self.min_tiles <= i * j <= self.max_tiles]
        best, best_difference = (1, 1), float("inf")
        for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(width / height - i / j)
            if difference < best_difference or (
                difference == best_difference and width * height > 0.5 * self.size * self.size * i * j
            ):
                best, best_difference = (i, j), difference
        return best

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image, thumbnail included."""
        columns, rows = self.grid(width, height)
        return columns * rows + (columns * rows > 1)

    def tiles(self, image: ImageLike) -> NDArray[np.uint8]:
        """Cuts an image: cells row by row, the thumbnail last. Alpha is dropped, palettes and grey are expanded.

        Args:
            image: a PIL image of any mode, or (H, W, 3) uint8.

        Returns:
            (n, S, S, 3) uint8.

        Raises:
            ValueError: an array of another shape or type.
        """
        rgb = _rgb(image)
        columns, rows = self.grid(*rgb.size)
        S = self.size
        stretched = np.asarray(rgb.resize((S * columns, S * rows)))  # PIL's default is bicubic, antialiased
        tiles = stretched.reshape(rows, S, columns, S, 3).swapaxes(1, 2).reshape(-1, S, S, 3)
        if columns * rows > 1:
            tiles = np.concatenate([tiles, np.asarray(rgb.resize((S, S)))[None]])
        return np.ascontiguousarray(tiles)

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """(3, 256): the pixel value of each level of a channel's bytes."""
        # The published processor rescales in double precision, rounds to single, then shifts and scales in single.
        unit = (np.arange(256) * self.rescale).astype(np.float32)[None]  # (1, 256)
        mean, std = (np.array(x, np.float32)[:, None] for x in (self.mean, self.std))  # (3, 1)
        levels: NDArray[np.float32] = (unit - mean) / std  # (3, 256)
        return levels

    def pixels(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalised pixel values.

        Args:
            tiles: (n, S, S, 3) uint8.

        Returns:
            (n, 3, S, S) float32.
        """
        return np.stack([self.levels[c][tiles[..., c]] for c in range(3)], axis=1)


def _rgb(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return Image.fromarray(image)
