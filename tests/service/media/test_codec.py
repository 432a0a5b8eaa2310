"""Images in the formats of the wire."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestofn.service.media.codec import MEDIA_TYPES, check_file, decode, decode_file, encode, thumbnail


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


@pytest.mark.parametrize(("mode", "clear"), [("I;16", 0), ("RGB", (0, 0, 0)), ("L", 0)], ids=lambda value: str(value))
def test_decode_one_colour_that_is_transparent_is_white(mode: str, clear: object):
    image = Image.new("L" if mode == "L" else mode, (8, 8), 0 if mode != "RGB" else (0, 0, 0))
    assert np.asarray(decode(saved(image, transparency=clear))).min() == 255


def test_decode_sixteen_bits_of_colour_keep_their_transparent_colour():
    """Pillow cuts samples to 8 bits, but not the colour that is transparent."""
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * 4 for _ in range(4))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = {b"IHDR": struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), b"tRNS": b"\x12\x34" * 3}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts.items())
    assert np.asarray(decode(data)).min() == 255


@pytest.mark.parametrize("alpha", [b"\0", b"\0\xff"], ids=["one entry", "two entries"])
def test_decode_palettes_with_alpha_are_on_white(alpha: bytes):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 8, 4))
    shown = np.asarray(decode(saved(image, transparency=alpha)))
    assert shown[6, 6].tolist() == [255, 255, 255]
    assert shown[1, 1].tolist() == [255, 0, 0]


def test_decode_cmyk_is_rgb():
    shown = decode(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = shown.getpixel((8, 8))
    assert (shown.mode, red > 245, green < 10, blue < 10) == ("RGB", True, True, True)


def test_check_file_warns_of_animations_and_of_nothing_else(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "white")]
    for suffix in ("png", "webp"):
        frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:])
        said = check_file(tmp_path / f"film.{suffix}")
        assert said == f"{tmp_path / 'film'}.{suffix} is an animation of 3 frames, of which the first is read"
    frames[0].save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=frames[1:2])
    frames[0].save(tmp_path / "plain.png")
    assert check_file(tmp_path / "photo.jpg") is check_file(tmp_path / "plain.png") is None
    assert decode_file(tmp_path / "photo.jpg").size == (8, 8)


def test_pixels_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "huge.png"
    header = saved(Image.new("L", (12_000, 12_000)))[:200]  # no pixels at all
    file.write_bytes(header)
    for read in (check_file, decode_file):
        with pytest.raises(ValueError, match=r"huge\.png: .*: 12000x12000 pixels; at most 128 Mi are decoded"):
            read(file)
    assert not warnings_of(lambda: decode(saved(Image.new("1", (10_000, 10_000)))))  # Pillow warns from 89 million on


def warnings_of(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("format", ["EPS", "TIFF", "BMP", "GIF"])
def test_decode_other_formats_are_refused_whatever_their_name(format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    with pytest.raises(ValueError, match="not a readable PNG, WebP or JPEG"):
        decode(file.getvalue())


def test_decode_of_a_file_that_is_no_image_is_refused(pixels):
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode(encode(pixels, "jpeg")[:200])
    with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
        encode(pixels[..., :2], "png")
    with pytest.raises(ValueError, match="png, webp, jpeg"):
        encode(pixels, "gif")
