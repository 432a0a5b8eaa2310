"""Images in the formats of the wire."""

import io

import numpy as np
import pytest
from PIL import Image

from bestofn.service.media.codec import MEDIA_TYPES, decode, encode, thumbnail


@pytest.fixture
def pixels():
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    return np.stack([np.tile(ramp, (64, 1)), np.full((64, 96), 40, np.uint8), np.tile(ramp[::-1], (64, 1))], axis=2)


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_every_format_comes_back_as_what_it_says(format, pixels):
    data = encode(pixels, format)
    assert Image.open(io.BytesIO(data)).format == format.upper()
    assert data == encode(pixels, format), "the same image gives the same bytes"
    apart = np.abs(np.asarray(decode(data)).astype(int) - pixels)
    assert apart.mean() < (0.1 if format == "png" else 3.0)


def test_png_is_lossless(pixels):
    assert np.array_equal(np.asarray(decode(encode(pixels, "png"))), pixels)


@pytest.mark.parametrize(("size", "expected"), [((1024, 512), (256, 128)), ((64, 64), (64, 64))])
def test_thumbnails_keep_the_aspect_and_never_grow(size, expected):
    data = thumbnail(Image.new("RGB", size, (200, 10, 10)))
    assert decode(data).size == expected
    assert Image.open(io.BytesIO(data)).format == "WEBP"


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_decode_a_rotated_photograph_is_upright():
    sideways = Image.new("RGB", (8, 8), "black")
    sideways.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright = np.asarray(decode(saved(sideways, exif=exif)))
    assert (upright[:4].max(), upright[4:].min()) == (0, 255)


def test_decode_sixteen_bits_are_scaled():
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    shown = np.asarray(decode(saved(Image.fromarray(grey))))
    assert np.abs(shown[..., 0] - grey / 257.0).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")], ids=lambda value: value
)
def test_decode_what_is_transparent_is_white(mode: str, format: str):
    hidden = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image = hidden if mode == "RGBA" else hidden.convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert np.asarray(decode(saved(image, format, **options))).min() == 255


def test_decode_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    shown = decode(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert shown.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["EPS", "TIFF", "BMP", "GIF"])
def test_decode_other_formats_are_refused_whatever_their_name(format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    with pytest.raises(ValueError, match="not a readable PNG, WebP or JPEG"):
        decode(file.getvalue())


def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode(encode(pixels, "jpeg")[:200])
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        encode(pixels[..., :2], "png")
    with pytest.raises(ValueError, match="png, webp, jpeg"):
        encode(pixels, "gif")
