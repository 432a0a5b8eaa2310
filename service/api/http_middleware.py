"""ASGI middleware for what HTTP expects of every route: a path prefix, HEAD where GET is, gzip for JSON, and CORS."""

import asyncio
import gzip
import re
from collections.abc import Sequence
from functools import partial
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bestofn.service.api.request_log import HEADER, SECURE, request_id

LEAST_BYTES = 1024  # least size of a body that is compressed
LEVEL = 4
ON_LOOP_BYTES = 32 * 1024  # a longer body is compressed in a thread
_ABSOLUTE = re.compile(rb"https?://([^/]+)(/.*)?", re.IGNORECASE)  # RFC 9112 section 3.2.2: HAProxy passes it on


class PathPrefix:
    """Removes what proxies leave before the path: the server of an absolute target, the path of the public address."""

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self._app = app
        self._prefix = urlsplit(public_url or "").path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (target := _ABSOLUTE.fullmatch(scope["raw_path"])):
            raw, headers = target[2] or b"/", [(b"host", target[1])]  # which counts, and not Host
            headers += [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "path": unquote(raw.decode()), "raw_path": raw, "headers": headers}
        if self._prefix and scope["type"] == "http" and f"{scope['path']}/".startswith(f"{self._prefix}/"):
            path = scope["path"].removeprefix(self._prefix) or "/"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


class Head:
    """Answers HEAD as GET, without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        answered = asyncio.Event()

        async def receive_until_answered() -> Message:
            if answered.is_set():
                return {"type": "http.disconnect"}  # ends a stream
            return await receive()

        async def send_start(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        await self._app({**scope, "method": "GET"}, receive_until_answered, send_start)


class JsonGzip:
    """Compresses JSON for callers who accept gzip. Images are compressed already, and streams must not wait."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _accepts_gzip(Headers(scope=scope).get("accept-encoding", "")):
            return await self._app(scope, receive, send)
        start: Message | None = None

        async def compress(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                media = Headers(raw=message["headers"]).get("content-type", "").partition(";")[0].strip()
                if media == "application/json" or media.endswith("+json"):
                    start = message
                    return
            elif start is not None:
                held, start = start, None
                body = message.get("body", b"")
                if len(body) >= LEAST_BYTES and not message.get("more_body", False):
                    pack = partial(gzip.compress, body, LEVEL)
                    short = len(body) <= ON_LOOP_BYTES
                    message = {**message, "body": pack() if short else await asyncio.to_thread(pack)}
                    headers = MutableHeaders(scope=held)
                    headers["Content-Encoding"] = "gzip"
                    headers["Content-Length"] = str(len(message["body"]))
                    headers.add_vary_header("Accept-Encoding")
                await send(held)
            await send(message)

        await self._app(scope, receive, compress)


def _accepts_gzip(header: str) -> bool:
    for part in header.lower().split(","):
        coding, _, weight = (piece.strip() for piece in part.partition(";"))
        if coding in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


PREFLIGHT_SECONDS = 600  # a browser keeps the answer to a preflight this long
METHODS = ("GET", "HEAD", "POST", "DELETE")
# Headers of answers that scripts may read; the others that browsers show by themselves are not named.
EXPOSED = (
    "Content-Disposition",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "retry-after-ms",
    "WWW-Authenticate",
    "x-should-retry",
    "X-Bestofn-Answer",
    "X-Bestofn-Candidate",
    "X-Bestofn-Job",
    "X-Bestofn-Judge",
    "X-Bestofn-Model",
    "X-Bestofn-Rank",
    "X-Bestofn-Score",
    "X-Bestofn-Seed",
    "X-Bestofn-Warning",
    "X-Request-ID",
)


class Cors(CORSMiddleware):
    """ASGI middleware in front of the guard: a preflight carries no key. The key itself is a header, never a cookie."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=[origin.lower() for origin in origins],
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=PREFLIGHT_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight, which reaches no other middleware, with the headers of every answer."""
        answer = super().preflight_response(request_headers)
        answer.headers.update({HEADER: request_id(request_headers.get(HEADER)), **SECURE})
        return answer
