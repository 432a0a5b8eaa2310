"""Limit of connections: a new one replaces the connection that has been idle the longest.

A connection is busy from the end of its request to the end of the answer. Others are idle: kept alive, opened without a
request, or with one that is still being sent.
"""

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bestofn.service.api.problem_details import MEDIA_TYPE, document, problem, problem_of
from bestofn.service.api.request_log import HEADER, SECURE, is_probe, request_id
from bestofn.service.core.errors import InvalidRequest, Unavailable

# Longer than clients and proxies keep a connection (httpx, openai: 5 s; AWS: 60 s; Google: 600 s; Cloudflare: 900 s;
# Envoy: 3600 s). If we closed it first, a request that is on its way just then would be lost.
KEPT_SECONDS = 3750
IDLE_SECONDS = 75  # without a byte of a request that is awaited, or read of an answer
SWEEP_SECONDS = 5.0
PACE_BYTES = 64 * 1024  # least progress of a body that is being sent, within IDLE_SECONDS
DESCRIPTORS_KEPT = 256  # for Redis, files, and connections that are accepted before others are closed
CONNECTIONS_KEPT = 16  # never busy: a probe always finds room
RETRY_SECONDS = 1.0
LINGER_SECONDS = 5.0
LAST_CALL_SECONDS = 1.0  # longer than a busy client or proxy leaves a connection unused
_CONNECTION = "connection"  # in the `state` of a request's scope

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Peer:
    """An open connection: idle, or without a byte read by its client, since `since`; `unread` bytes are left.

    `received` bytes of a body have come since then. It is `kept` from an answer to the first byte of the next request.
    """

    transport: asyncio.Transport
    since: float
    kept: bool = False
    unread: int = 0
    received: int = 0


@dataclass
class Connections:
    """The connections of one API process.

    Attributes:
        limit: maximum number.
        closed: number of connections closed to make room, or because they were idle too long.
        refused: number of requests refused because too many were being answered.
        ending: whether an answer is the last of its connection.
    """

    limit: int
    clock: Callable[[], float] = time.monotonic
    closed: int = 0
    refused: int = 0
    ending: bool = False
    _idle: "OrderedDict[_Peer, None]" = field(default_factory=OrderedDict)  # the longest idle first
    _busy: set[_Peer] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    @property
    def full(self) -> bool:
        """Whether too many connections are busy to answer another request, except for probes."""
        return len(self._busy) >= self.limit - CONNECTIONS_KEPT

    def protocol(self) -> type[asyncio.Protocol]:
        """The HTTP protocol for uvicorn, whose connections are counted here."""
        connections = self

        class Counted(H11Protocol):
            _peer: _Peer | None = None

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                self._peer = connections.opened(transport)
                self.app_state = {**self.app_state, _CONNECTION: self._peer}

            def data_received(self, data: bytes) -> None:
                if self._peer is not None and self._peer.kept:
                    connections.resumed(self._peer)
                super().data_received(data)

            def send_400_response(self, msg: str) -> None:
                if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
                    for event in _not_http():
                        self.transport.write(self.conn.send(event) or b"")
                self.transport.close()

            def _unsupported_upgrade_warning(self) -> None:
                """Log nothing: Java's client offers HTTP/2 with its first request, and goes on with HTTP/1.1."""

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self._peer is not None:
                    connections.lost(self._peer)

        return Counted

    def opened(self, transport: asyncio.Transport) -> _Peer:
        """Count a new connection, and close another one if there are too many."""
        peer = _Peer(transport, self.clock())
        if len(self) >= self.limit:
            self._make_room()
        self._idle[peer] = None
        return peer

    def lost(self, peer: _Peer) -> None:
        """Forget a connection."""
        self._idle.pop(peer, None)
        self._busy.discard(peer)

    def resumed(self, peer: _Peer) -> None:
        """Note the first byte on a connection that was kept alive."""
        peer.kept, peer.since = False, self.clock()
        if peer in self._idle:
            self._idle.move_to_end(peer)

    def begin(self, peer: _Peer) -> None:
        """Note that the peer's request has arrived."""
        if peer in self._idle:
            del self._idle[peer]
            peer.since, peer.unread, peer.kept = self.clock(), 0, False
            self._busy.add(peer)

    def received(self, peer: _Peer, size: int) -> None:
        """Note `size` more bytes of the peer's body: one that comes at a fair pace is not idle."""
        peer.received += size
        if peer.received >= PACE_BYTES and peer in self._idle:
            peer.received, peer.since = 0, self.clock()
            self._idle.move_to_end(peer)

    def end(self, peer: _Peer) -> None:
        """Note that the peer's request has been answered."""
        if peer in self._busy or peer in self._idle:  # else it was lost meanwhile
            self.lost(peer)
            peer.since, peer.kept = self.clock(), True
            self._idle[peer] = None

    async def sweep(self) -> None:
        """Close connections that are idle for too long, and those whose client reads nothing, again and again."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.close_old()

    def close_old(self) -> None:
        """One look of `sweep`."""
        now = self.clock()
        for peer in (*self._idle, *self._busy):
            unread = peer.transport.get_write_buffer_size()
            if unread < peer.unread or (not unread and peer in self._busy):
                peer.since = now
            peer.unread = unread
            if now - peer.since > (KEPT_SECONDS if peer.kept and not unread else IDLE_SECONDS):
                self._close(peer)

    async def end_idle(self) -> None:
        """Let clients end their connections: one closed under a request that is on its way would lose it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_CALL_SECONDS):
                while self._idle:
                    await asyncio.sleep(0.02)

    def _make_room(self) -> None:
        if self._idle:
            self._close(next(iter(self._idle)))
        elif self._busy:
            self._close(max(self._busy, key=lambda peer: peer.transport.get_write_buffer_size()))

    def _close(self, peer: _Peer) -> None:
        self.lost(peer)
        self.closed += 1
        peer.transport.abort()  # `close` would wait until the client has read all


def _not_http() -> tuple[h11.Event, ...]:
    """The answer to bytes that are no request of HTTP, which reach no middleware, with the headers of every answer."""
    known_as = request_id(None)
    fault = document(400, InvalidRequest.code, "these bytes are not a request of HTTP/1.1") | {"request_id": known_as}
    headers = {"Content-Type": MEDIA_TYPE, "Connection": "close", HEADER: known_as, **SECURE}
    body = json.dumps(fault).encode()
    return h11.Response(status_code=400, headers=list(headers.items())), h11.Data(data=body), h11.EndOfMessage()


class ConnectionLimit:
    """ASGI middleware that notes which connections are busy, and refuses requests while too many are.

    It refuses other versions of HTTP too.
    """

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("state", {}).get(_CONNECTION)
        if scope["type"] != "http" or not isinstance(peer, _Peer):
            return await self._app(scope, receive, send)
        if scope["http_version"] not in ("1.0", "1.1"):  # the first bytes of HTTP/2 look like a request
            answered = problem(505, "http_version_not_supported", "this server speaks HTTP/1.1: set the proxy to it")
            return await answered(scope, receive, send)
        connections = self._connections
        if connections.full and not is_probe(scope):
            connections.refused += 1
            refusal = Unavailable("too many calls are being answered; try again", retry_after=RETRY_SECONDS)
            return await problem_of(refusal)(scope, receive, send)

        async def note() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                if message.get("more_body", False):
                    connections.received(peer, len(message.get("body", b"")))
                else:
                    connections.begin(peer)
            return message

        async def answer(message: Message) -> None:
            if connections.ending and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        headers = Headers(scope=scope)
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            connections.begin(peer)
        try:
            await self._app(scope, note, answer)
        finally:
            connections.end(peer)


class Linger:
    """ASGI middleware that reads the rest of a refused body before the connection closes.

    Closing with unread bytes resets the connection, and the answer with it: nginx then makes a 502 of a 413. uvicorn
    does the same for connections that are kept alive. A refused body that waits for 100 (Continue) does not come, so
    that the connection is closed. Apache otherwise waits for the body, and makes a 500 of the refusal.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        closes = "close" in headers.get("connection", "").lower()
        waits = "100-continue" in headers.get("expect", "").lower()
        if not (closes or waits):
            return await self._app(scope, receive, send)
        unread = True

        async def note() -> Message:
            nonlocal unread, waits
            waits = False  # uvicorn asks for the body
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal closes
            if waits and message["type"] == "http.response.start":
                closes = True
                MutableHeaders(scope=message)["Connection"] = "close"
            if closes and unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        while unread:
                            await note()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, note, answer)


class AcceptErrors:
    """Exception handler of an event loop that logs failed accepts at most once a second.

    Without descriptors asyncio reports thousands of them a second, each with a traceback.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed = 0
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
            return
        self._failed += 1
        if self._clock() >= self._quiet_until:
            log.error("connections cannot be accepted", error=str(context.get("exception")), times=self._failed)
            self._failed, self._quiet_until = 0, self._clock() + 1.0
