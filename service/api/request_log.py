"""Request log: an id on every answer, one log line and metrics for every request."""

import re
import time
import uuid
from http import HTTPMethod

from starlette.datastructures import Headers, MutableHeaders
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

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/-]{0,127}")

log = logs.request_log()


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
            _record(scope, status or HUNG_UP, time.perf_counter() - started)


def _record(scope: Scope, status: int, seconds: float) -> None:
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
