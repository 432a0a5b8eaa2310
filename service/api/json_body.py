"""Bodies of limited size, in JSON or a form; everything else is refused before it is read."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from bestofn.service.api.access import caller_of
from bestofn.service.api.uploads import FORM, is_form
from bestofn.service.core.errors import Overloaded, Unavailable, UnsupportedMediaType
from bestofn.service.core.rank_request import MAX_BODY_BYTES


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
