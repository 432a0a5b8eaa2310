"""JSON bodies of limited size; everything else is refused before it is read."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from bestofn.service.api.access import caller_of
from bestofn.service.core.errors import Overloaded, Unavailable, UnsupportedMediaType


class JsonRoute(APIRoute):
    """A route for submissions as JSON of limited size.

    Other bodies, and callers over their rate limit, are refused before the body is read.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            context = request.app.state.context
            caller = caller_of(request)
            context.refusal_limiter.enter(caller)
            _check_media_type(request.headers.get("content-type"))
            try:
                return await handle(_limited(request, context.settings.max_body_bytes))
            except (Overloaded, Unavailable) as refusal:
                context.refusal_limiter.refused(caller, refusal)
                raise

        return handle_json


def _check_media_type(header: str | None) -> None:
    media = (header or "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        said = f"Content-Type is {media[:100]!a}" if media else "the header Content-Type is missing"
        raise UnsupportedMediaType(
            f"{said}; send Content-Type: application/json (curl: -H 'Content-Type: application/json')",
            field="Content-Type",
        )


def _limited(request: Request, limit: int) -> Request:
    """The same request, whose body raises a 413 as soon as it is known to be longer than `limit` bytes."""
    # An HTTPException, since FastAPI turns every other error while it reads a body into "cannot be parsed".
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes; a request needs a few hundred")
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
