"""Images to bytes and back: the three formats of the wire and small WebP thumbnails, with Pillow alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from bestofn.service.core.jobs import ImageFormat
from bestofn.service.media.metadata import Story

if TYPE_CHECKING:  # the API and clients run without numpy
    import numpy as np
    from numpy.typing import NDArray

THUMBNAIL_SIDE = 256  # pixels, the longer side
READABLE = ("PNG", "WEBP", "JPEG")  # Pillow starts programs for others: Ghostscript for an EPS, whatever its name
MEDIA_TYPES: Mapping[ImageFormat, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}

# Fixed, because the bytes of an image are part of a job's result: the same request gives the same bytes.
_OPTIONS: Mapping[ImageFormat, Mapping[str, object]] = {
    "png": {"compress_level": 6},
    "webp": {"quality": 95, "method": 4},
    "jpeg": {"quality": 95, "subsampling": 0},
}


def encode(pixels: NDArray[np.uint8] | Image.Image, format: ImageFormat, story: Story | None = None) -> bytes:
    """The image as a file's bytes; PNG is lossless, WebP and JPEG are at quality 95.

    Args:
        pixels: RGB, (height, width, 3), or a Pillow image.
        format: png, webp or jpeg.
        story: how the image was made, to be written into the file.
    """
    if format not in MEDIA_TYPES:
        raise ValueError(f"an image's format is one of {', '.join(MEDIA_TYPES)}, got {format!r}")
    file = io.BytesIO()
    metadata = {} if story is None else story.save_options(format)
    _image(pixels).save(file, format.upper(), **_OPTIONS[format], **metadata)
    return file.getvalue()


def thumbnail(pixels: NDArray[np.uint8] | Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """The image as WebP, its longer side at most `side` pixels; a smaller image keeps its size."""
    image = _image(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80, method=4)
    return file.getvalue()


def decode(data: bytes) -> Image.Image:
    """The RGB image in a file's bytes, as viewers show it: upright, on white where it is transparent.

    Samples of 16 bits are scaled to 8. An animation gives its first frame.

    Raises:
        ValueError: the bytes are not a PNG, WebP or JPEG, cut short, or of more than 179 million pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as image:
            return _shown(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        said = str(error).partition(" <_io.")[0]  # without the object's address in memory
        raise ValueError(f"not a readable PNG, WebP or JPEG ({len(data)} bytes): {said}") from error


def _shown(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut at 255
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _image(pixels: NDArray[np.uint8] | Image.Image) -> Image.Image:
    """A copy in RGB, so that shrinking it does not touch the caller's."""
    if isinstance(pixels, Image.Image):
        return pixels.convert("RGB") if pixels.mode != "RGB" else pixels.copy()
    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an image is (height, width, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
    return Image.fromarray(pixels)
