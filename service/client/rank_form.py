"""The form of POST /rank: a prompt, options, and the files of images."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from bestofn.service.client.options import as_json
from bestofn.service.core.rank_request import check_number, check_sizes, shown_name

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

ImageSource = str | os.PathLike[str] | bytes | Image.Image
"""A file's path, a file's bytes, or an image, which is sent as PNG."""


Files = Sequence[tuple[str, tuple[str, bytes]]]
"""Field, name and bytes of each file."""


def fields_of(prompt: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The form's fields: text as it is, other values as JSON."""
    given = {"prompt": prompt} | {name: value for name, value in options.items() if value is not None}
    written = {name: as_json(name, value) for name, value in given.items()}
    return written | {name: str(value) for name, value in given.items() if isinstance(value, str)}


def files_of(images: Sequence[ImageSource]) -> Files:
    """The form's files, within the limits of a request: a server may hang up on more before it has answered.

    Raises:
        OSError: a file cannot be read.
        InvalidRequest: there are too many, or they are too large.
    """
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)):  # the characters of a path are paths too
        images = [images]
    check_number(len(images))
    files = [(_name(image), _bytes(image)) for image in images]
    names = [shown_name(number, name) for number, (name, _) in enumerate(files)]
    check_sizes(names, [len(data) for _, data in files])
    return [("images", file) for file in files]


def _name(image: ImageSource) -> str:
    named = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    return Path(named).name


def _bytes(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Image.Image):
        return Path(image).read_bytes()
    upright = ImageOps.exif_transpose(image)
    file = io.BytesIO()
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(file, "PNG")
    return file.getvalue()
