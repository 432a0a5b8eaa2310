"""Bodies of POST /rank: a form with files, or JSON with data URLs; and the checks of the images in them."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import SentImage
from bestofn.service.core.rank_request import (
    MAX_IMAGE_PIXELS,
    MAX_IMAGES,
    RankOptions,
    RankRequest,
    check_number,
    check_pixels,
    check_sizes,
    shown_name,
)
from bestofn.service.media.codec import decode, read_header

FORM = "multipart/form-data"
TEXTS = ("prompt", "webhook", "judge", "rule", "priority")  # fields of a form that are text; the others are JSON
MOST_PARTS = MAX_IMAGES + 64  # of a form; what is beyond is not split
MOST_HEAD = 4096  # bytes of a part's headers
MOST_NAME = 255  # characters of a file's name
AT_ONCE, AT_ONCE_OF_CALLER = 4, 2  # bodies in memory
_PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')


@dataclass(frozen=True, slots=True)
class SentFile:
    """An image's file and its name, "" if there is none."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upload:
    """What a body says, checked: options, files, their description, and warnings about them."""

    options: RankOptions
    files: tuple[SentFile, ...]
    images: tuple[SentImage, ...]
    warnings: tuple[str, ...]


class UploadTurns:
    """Turns of uploads: a body is read into memory in its turn, so that few are there; one at a time is decoded."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._callers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """A turn of a caller, in the order of asking."""
        own = self._callers.setdefault(caller, asyncio.Semaphore(AT_ONCE_OF_CALLER))
        async with own, self._all:
            yield

    async def read(self, content_type: str, body: bytes) -> Upload:
        """`read_upload`, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, read_upload, content_type, body)


def read_upload(content_type: str, body: bytes) -> Upload:
    """Read and check a body; every image is decoded once. This may take seconds.

    Args:
        content_type: the header.
        body: the whole body.

    Raises:
        RequestValidationError: a field is wrong.
        InvalidRequest: an image is wrong, or too large, or there are too many.
    """
    options, files = _read_form(content_type, body) if is_form(content_type) else _read_json(body)
    names = [shown_name(number, file.name) for number, file in enumerate(files)]
    check_number(len(files))
    check_sizes(names, [len(file.data) for file in files])
    try:
        headers = [read_header(file.data, name, MAX_IMAGE_PIXELS) for name, file in zip(names, files, strict=True)]
        check_pixels(sum(header.width * header.height for header in headers))
        warnings: list[str] = []
        for name, file in zip(names, files, strict=True):
            decode(file.data, name, warnings.append)
    except ValueError as error:
        raise InvalidRequest(str(error), field="images") from error
    images = [
        SentImage(name=file.name, format=header.format, size=len(file.data))
        for file, header in zip(files, headers, strict=True)
    ]
    return Upload(options, tuple(files), tuple(images), tuple(warnings))


def is_form(content_type: str) -> bool:
    """Whether a Content-Type header names a form with files."""
    return content_type.partition(";")[0].strip().lower() == FORM


def _read_json(body: bytes) -> tuple[RankOptions, list[SentFile]]:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else 0
        said = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or too deeply nested"
        entry = {"type": "json_invalid", "loc": ("body", place), "msg": "", "ctx": {"error": said}}
        raise RequestValidationError([entry], body=RankRequest) from error
    request = _validated(RankRequest, sent)
    check_number(len(request.images))
    return request, [SentFile("", _data_of(shown_name(number, ""), url)) for number, url in enumerate(request.images)]


def _data_of(name: str, url: str) -> bytes:
    """The bytes in a data URL. Raises InvalidRequest."""
    head, _, data = url.partition(",")
    try:
        if not re.fullmatch(r"data:[^,]*;base64", head, re.IGNORECASE):
            raise ValueError(f"it begins with {url[:24]!a}")
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            f'{name} is no data URL such as "data:image/png;base64,iVBOR...": {error}. This server fetches no '
            "addresses; send the file itself",
            field="images",
        ) from error


def _read_form(content_type: str, body: bytes) -> tuple[RankOptions, list[SentFile]]:
    fields: dict[str, Any] = {}
    files: list[SentFile] = []
    for name, filename, data in _parts(content_type, body):
        if name in ("images", "images[]"):
            files.append(SentFile(_last_part(filename), data))
        elif name not in RankOptions.model_fields:
            fields[name] = None  # refused below, with the right name
        elif name in fields:
            raise InvalidRequest(f"{name} comes twice; send it once", field=name)
        else:
            fields[name] = _value(name, data)
    return _validated(RankOptions, fields), files


def _value(name: str, data: bytes) -> Any:
    """The value of a form's field: text, or JSON as in the other kind of body."""
    try:
        text = data.decode()
        return text if name in TEXTS else json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "text in UTF-8" if name in TEXTS else "a JSON value, such as 2 or true"
        raise InvalidRequest(f"{name} is not {what}", field=name) from error


def _parts(content_type: str, body: bytes) -> list[tuple[str, str, bytes]]:
    """Name, file name and content of each part of a form (RFC 7578)."""
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise InvalidRequest(f"Content-Type {FORM} names no boundary; let the client set it", field="Content-Type")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MOST_PARTS)
    if not parts or not parts[-1].startswith(b"--"):
        fault = "has too many parts" if len(parts) == MOST_PARTS else "is cut short: its last boundary is not there"
        raise InvalidRequest(f"the form {fault}; send prompt and images", field="images")
    found = []
    for part in parts[:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        lines = head[:MOST_HEAD].decode("utf-8", "replace").splitlines()
        header = next((line for line in lines if line.lower().startswith("content-disposition:")), "")
        name = _parameter(header, "name")
        if not blank or not name:
            raise InvalidRequest("a part of the form has no name; send prompt and images", field="images")
        found.append((name, _parameter(header, "filename"), content))
    return found


def _parameter(header: str, wanted: str) -> str:
    """A parameter of a header's line, such as `name="images"`; "" if there is none."""
    for name, quoted, token in _PARAMETER.findall(header):
        if name.lower() == wanted:
            return str(token or quoted.replace('\\"', '"'))
    return ""


def _last_part(filename: str) -> str:
    """A file's name without its folders; "" if it cannot be shown."""
    name = re.split(r"[\\/]", filename)[-1][:MOST_NAME]
    return name if name.isprintable() else ""


def _validated(model: type[RankOptions], sent: Any) -> Any:
    """The options in `sent`. Raises RequestValidationError as FastAPI does for a declared body."""
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        entries: Sequence[Any] = [entry | {"loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(entries, body=RankRequest) from error
