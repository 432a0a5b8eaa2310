"""Images to bytes and back: the three formats of the wire and small WebP thumbnails, with Pillow alone."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps

from bestofn.service.core.jobs import ImageFormat
from bestofn.service.media.metadata import Story

if TYPE_CHECKING:  # the API and clients run without numpy
    import numpy as np
    from numpy.typing import NDArray

THUMBNAIL_SIDE = 256  # pixels, the longer side
MAX_PIXELS = 2**27  # an image that is decoded: 11,585 x 11,585, half a gigabyte
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


def decode(data: bytes, name: str = "", warn: Callable[[str], object] | None = None) -> Image.Image:
    """The RGB image in a file's bytes, as viewers show it: upright, on white where it is transparent.

    Samples of 16 bits are scaled to 8. An animation gives its first frame.

    Args:
        data: the file's bytes.
        name: the file's name, for errors.
        warn: called with a sentence about an animation.

    Raises:
        ValueError: the bytes are not a PNG, WebP or JPEG, cut short, or of more than MAX_PIXELS.
    """
    with _opened(io.BytesIO(data), name) as image:
        if warn is not None and (warning := _animation(image, name)):
            warn(warning)
        return _shown(ImageOps.exif_transpose(image))


class Header(NamedTuple):
    """Format of an image's file, and its width and height in pixels as they are stored."""

    format: ImageFormat
    width: int
    height: int


def read_header(data: bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> Header:
    """The header of a file's bytes, whose pixels are not decoded. Raises ValueError as `decode`."""
    with _opened(io.BytesIO(data), name, max_pixels) as image:
        formats: Mapping[str | None, ImageFormat] = {"PNG": "png", "WEBP": "webp"}
        return Header(formats.get(image.format, "jpeg"), *image.size)  # a photograph with a preview is an MPO


def decode_file(path: Path) -> Image.Image:
    """`decode` of a file; its errors name it."""
    return decode(path.read_bytes(), str(path))


def check_file(path: Path) -> str | None:
    """Look at a file's header without decoding its pixels: a warning about it, or None.

    Raises:
        ValueError: as `decode`, except that a file which is cut short may go unnoticed.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file, _opened(file, str(path)) as image:
        return _animation(image, str(path))


def _animation(image: Image.Image, name: str) -> str | None:
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format not in READABLE:  # Pillow takes a photograph with a preview for a film: MPO
        return None
    return f"{name} is an animation of {frames} frames, of which the first is read"


@contextmanager
def _opened(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A file's image. What goes wrong with it in the block is a ValueError, and no warning of Pillow's gets out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF or palettes: what can be read is read
        try:
            with Image.open(file, formats=READABLE) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(f"{width}x{height} pixels; at most {max_pixels >> 20} Mi are decoded: shrink it")
                yield image
        except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
            said = str(error).partition(" <_io.")[0].partition(" '<_io.")[0] or type(error).__name__
            if isinstance(error, Image.DecompressionBombError):  # beyond a limit of Pillow's own, above ours
                pixels = re.search(r"\d+ pixels", said)
                said = f"{pixels[0] if pixels else said}; at most {max_pixels >> 20} Mi are decoded: shrink it"
            size = file.seek(0, io.SEEK_END)
            of = f"{name}: " if name else ""
            raise ValueError(f"{of}not a readable PNG, WebP or JPEG ({size} bytes): {said}") from error


def _shown(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut at 255
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if isinstance(clear, int):
            image.info["transparency"] = (clear + 128) // 257
    elif image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # 16 bits, which Pillow would cut
        image.info["transparency"] = tuple(value >> 8 for value in clear)
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
