"""ASGI middleware for every route: a path prefix, HEAD where GET is, gzip for JSON, the request log, and CORS.

The request log puts an id on every answer, and has one line and metrics for every request.
"""

import asyncio
import gzip
import re
import time
import uuid
from collections.abc import Sequence
from functools import partial
from http import HTTPMethod
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from bestofn.service.api.problem_details import problem
from bestofn.service.core.errors import BestOfNError
from bestofn.service.telemetry import logs, metrics

HEADER = "X-Request-ID"
PROBES = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds: no line, no trace
HUNG_UP = 499  # said of callers who left before their answer began
NO_ROUTE = "none"
# Of every answer that does not say otherwise itself, as pages do.
SECURE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
LEAST_BYTES = 1024  # of a body that is worth compressing
LEVEL = 4
ON_LOOP_BYTES = 32 * 1024  # a longer body is compressed in a thread
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/-]{0,127}")
_ABSOLUTE = re.compile(rb"https?://([^/]+)(/.*)?", re.IGNORECASE)  # RFC 9112 section 3.2.2: HAProxy passes it on

log = logs.request_log()


class Prefix:
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


def request_id(given: str | None) -> str:
    """The caller's own id of a request if it is a harmless one, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


def is_probe(scope: Scope) -> bool:
    """Whether this is one of the requests that machines send every few seconds."""
    return scope.get("path") in PROBES


class Requests:
    """ASGI middleware around everything: what the application raises is answered and logged here too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        known_as, started = request_id(Headers(scope=scope).get(HEADER)), time.perf_counter()
        status: int | None = None
        streams = False
        clear_contextvars()
        bind_contextvars(request_id=known_as)

        async def answer(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = known_as
                for name, value in SECURE.items():
                    headers.setdefault(name, value)
                if "caller" in scope:  # proxies must not keep answers that need a key
                    headers["Cache-Control"] = "no-store"
                # Varnish keeps what says nothing for two minutes: /readyz, and the 404 of an image that comes later.
                headers.setdefault("Cache-Control", "no-cache" if "etag" in headers else "no-store")
                if headers.get("content-type", "").startswith("text/event-stream"):
                    streams = True
                    metrics.EVENT_STREAMS.inc()
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("the server made a mistake", method=scope["method"], route=_route(scope))
            if status is not None:
                raise  # the answer has begun: all that is left is to cut the connection
            mistake = problem(500, BestOfNError.code, "the server made a mistake; its log says more")
            await mistake(scope, receive, answer)
        finally:
            if streams:
                metrics.EVENT_STREAMS.dec()
            _tell(scope, status or HUNG_UP, time.perf_counter() - started)


def _tell(scope: Scope, status: int, seconds: float) -> None:
    known = get_contextvars()  # what the application has bound: a job's id, the code of an error
    method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "OTHER"
    route = _route(scope)
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)
    if "code" in known:
        metrics.REFUSED.labels(known["code"]).inc()
    job = scope.get("path_params", {}).get("job_id")
    logged = {"job_id": job} if job and "job_id" not in known else {}
    write = log.debug if is_probe(scope) else log.info
    write("request", method=method, route=route, status=status, seconds=round(seconds, 4), **logged)


def _route(scope: Scope) -> str:
    """The route's template: paths themselves are without number."""
    return getattr(scope.get("route"), "path_format", None) or NO_ROUTE


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
