"""Bodies of submissions, limited in size: JSON, or of POST /rank images in a form or as data URLs; checks of images."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from bestofn.service.api.access import caller_of
from bestofn.service.core.errors import InvalidRequest, Overloaded, Unavailable, UnsupportedMediaType
from bestofn.service.core.jobs import SentImage
from bestofn.service.core.rank_request import (
    MAX_BODY_BYTES,
    MAX_IMAGE_PIXELS,
    MAX_IMAGES,
    RankFields,
    RankRequest,
    check_number,
    check_pixels,
    check_sizes,
    shown_name,
)
from bestofn.service.core.turns import Turns
from bestofn.service.media.codec import decode, read_header

FORM = "multipart/form-data"
TEXTS = ("prompt", "webhook", "judge", "rule", "priority")  # fields of a form that are text; the others are JSON
MOST_PARTS = MAX_IMAGES + 64  # parts of a form; what is beyond is not split
MOST_HEAD = 4096  # bytes of a part's headers
MOST_NAME = 255  # characters of a file's name
AT_ONCE, AT_ONCE_OF_CALLER = 4, 2  # bodies in memory
File = tuple[str, bytes]
"""Name of an image's file, "" if there is none, and its content."""
_PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')


@dataclass(frozen=True, slots=True)
class Upload:
    """What a body says, checked: options, contents of files, their description, and warnings about them."""

    options: RankFields
    files: tuple[bytes, ...] = field(repr=False)
    images: tuple[SentImage, ...]
    warnings: tuple[str, ...]


class UploadTurns:
    """Turns of uploads: a body is read into memory in its turn, so that few are there; one at a time is decoded."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._callers = Turns(AT_ONCE_OF_CALLER)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """A turn of a caller, in the order of asking."""
        async with self._callers.of(caller), self._all:
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
    names = [shown_name(number, name) for number, (name, _) in enumerate(files)]
    contents = tuple(data for _, data in files)
    check_number(len(files))
    check_sizes(names, list(map(len, contents)))
    try:
        headers = [read_header(data, name, MAX_IMAGE_PIXELS) for name, data in zip(names, contents, strict=True)]
        check_pixels(sum(header.width * header.height for header in headers))
        warnings: list[str] = []
        for name, data in zip(names, contents, strict=True):
            decode(data, name, warnings.append)
    except ValueError as error:
        raise InvalidRequest(str(error), field="images") from error
    images = tuple(
        SentImage(name=name, format=header.format, size=len(data))
        for (name, data), header in zip(files, headers, strict=True)
    )
    return Upload(options, contents, images, tuple(warnings))


def is_form(content_type: str) -> bool:
    """Whether a Content-Type header names a form with files."""
    return content_type.partition(";")[0].strip().lower() == FORM


def _read_json(body: bytes) -> tuple[RankFields, list[File]]:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else 0
        said = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or too deeply nested"
        entry = {"type": "json_invalid", "loc": ("body", place), "msg": "", "ctx": {"error": said}}
        raise RequestValidationError([entry], body=RankRequest) from error
    request = _validated(RankRequest, sent)
    check_number(len(request.images))
    return request, [("", _data_of(shown_name(number, ""), url)) for number, url in enumerate(request.images)]


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


def _read_form(content_type: str, body: bytes) -> tuple[RankFields, list[File]]:
    fields: dict[str, Any] = {}
    files: list[File] = []
    for name, filename, data in _parts(content_type, body):
        if name in ("images", "images[]"):
            files.append((_last_part(filename), data))
        elif name not in RankFields.model_fields:
            fields[name] = None  # refused below, with the right name
        elif name in fields:
            raise InvalidRequest(f"{name} comes twice; send it once", field=name)
        else:
            fields[name] = _value(name, data)
    return _validated(RankFields, fields), files


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
    """A file's name without its folders; "" if it cannot be shown. Clients write its quotes as %22 (WHATWG's HTML)."""
    name = re.split(r"[\\/]", filename)[-1].replace("%22", '"')[:MOST_NAME]
    return name if name.isprintable() else ""


def _validated(model: type[RankFields], sent: Any) -> Any:
    """The options in `sent`. Raises RequestValidationError as FastAPI does for a declared body."""
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        entries: Sequence[Any] = [entry | {"loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(entries, body=RankRequest) from error


class JsonRoute(APIRoute):
    """A route for submissions as JSON, in bodies of limited size.

    Other bodies, and callers over their rate limit, are refused before the body is read.
    """

    form = False  # whether a body may be a form with files

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_submission(request: Request) -> Response:
            context = request.app.state.context
            caller, content_type = caller_of(request), request.headers.get("content-type", "")
            limit, fix = context.settings.max_body_bytes, "a request needs a few hundred"
            if self.form:
                limit, fix = MAX_BODY_BYTES, "send fewer or smaller images, or JPEG or WebP"
            context.refusal_limiter.enter(caller)
            if not (self.form and is_form(content_type)):
                _check_json(content_type, FORM if self.form else "application/json")
            try:
                return await handle(_limited(request, limit, fix))
            except (Overloaded, Unavailable) as refusal:
                context.refusal_limiter.refused(caller, refusal)
                raise

        return handle_submission


class UploadRoute(JsonRoute):
    """A route for images, in a form or as JSON with data URLs."""

    form = True


def _check_json(header: str, fix: str) -> None:
    media = header.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        said = f"Content-Type is {media[:100]!a}" if media else "the header Content-Type is missing"
        raise UnsupportedMediaType(
            f"{said}; send Content-Type: {fix} "
            + ("(curl: -F images=@FILE)" if fix == FORM else f"(curl: -H 'Content-Type: {fix}')"),
            field="Content-Type",
        )


def _limited(request: Request, limit: int, fix: str) -> Request:
    """The same request, whose body raises a 413 as soon as it is known to be longer than `limit` bytes."""
    # An HTTPException, since FastAPI turns every other error while it reads a body into "cannot be parsed".
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes; {fix}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_long
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise too_long
        return message

    return Request(request.scope, receive)
