"""Drivers of flows over httpx: one blocks, the other awaits."""

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from typing import Any, TypeVar

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

from bestofn.service.client.actions import Action, Close, Cursor, Emit, Flow, Next, Open, Send, Sleep

T = TypeVar("T")

SILENCE_SECONDS = 45.0  # a stream that lives says something, at least a comment, every 15 s
# Every job that is followed holds a connection, so their number is the caller's affair.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


def _options(action: Send | Open, timeout: httpx.Timeout) -> dict[str, Any]:
    """Arguments of a request for httpx."""
    if isinstance(action, Open):
        patient = httpx.Timeout(timeout.connect, read=SILENCE_SECONDS)
        return {"method": "GET", "url": action.path, "headers": action.headers, "timeout": patient}
    options: dict[str, Any] = {"method": action.method, "url": action.path, "headers": action.headers}
    if action.json is not None:
        options["json"] = action.json
    if action.timeout is not None:
        options["timeout"] = action.timeout
    return options


class _Stream:
    """At most one open event stream."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._open = ExitStack()
        self._events: Iterator[ServerSentEvent] = iter(())

    def open(self, action: Open) -> httpx.Response:
        self.close()
        response = self._open.enter_context(self._http.stream(**_options(action, self._http.timeout)))
        if response.is_success:
            self._events = EventSource(response).iter_sse()
        else:
            response.read()
        return response

    def next(self) -> ServerSentEvent | None:
        return next(self._events, None)

    def close(self) -> None:
        self._events = iter(())
        self._open.close()


class Driver:
    """Runs flows with blocking calls."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def run(self, flow: Flow[T], tell: Callable[[Any], object] | None = None) -> T:
        """The flow's value; `tell` gets what the flow emits."""
        cursor = Cursor(flow)
        with closing(_Stream(self._http)) as stream:
            while (emitted := self._next(cursor, stream)) is not None:
                try:
                    if tell is not None:
                        tell(emitted.value)
                except BaseException as error:
                    cursor.throw(error)
                else:
                    cursor.send(None)
        return cursor.value

    def iterate(self, flow: Flow[None]) -> Iterator[Any]:
        """What the flow emits, one by one."""
        cursor = Cursor(flow)
        with closing(_Stream(self._http)) as stream:
            while (emitted := self._next(cursor, stream)) is not None:
                yield emitted.value
                cursor.send(None)

    def _next(self, cursor: Cursor[Any], stream: _Stream) -> Emit | None:
        """Perform actions until the flow emits something, or None if it ends without."""
        while (action := cursor.action) is not None:
            if isinstance(action, Emit):
                return action
            try:
                outcome = self._perform(action, stream)
            except BaseException as error:  # Ctrl-C too: the flow may have a last wish
                cursor.throw(error)
            else:
                cursor.send(outcome)
        return None

    def _perform(self, action: Action, stream: _Stream) -> Any:
        match action:
            case Send():
                return self._http.request(**_options(action, self._http.timeout))
            case Open():
                return stream.open(action)
            case Next():
                return stream.next()
            case Close():
                return stream.close()
            case Sleep(seconds):
                return time.sleep(seconds)


class _AsyncStream:
    """At most one open event stream."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._open = AsyncExitStack()
        self._events: AsyncIterator[ServerSentEvent] | None = None

    async def open(self, action: Open) -> httpx.Response:
        await self.aclose()
        response = await self._open.enter_async_context(self._http.stream(**_options(action, self._http.timeout)))
        if response.is_success:
            self._events = await self._open.enter_async_context(aclosing(EventSource(response).aiter_sse()))
        else:
            await response.aread()
        return response

    async def next(self) -> ServerSentEvent | None:
        return None if self._events is None else await anext(self._events, None)

    async def aclose(self) -> None:
        self._events = None
        await self._open.aclose()


class AsyncDriver:
    """Runs flows with awaited calls."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def run(self, flow: Flow[T], tell: Callable[[Any], object] | None = None) -> T:
        """The flow's value; `tell` gets what the flow emits, and what it returns is awaited if it can be."""
        cursor = Cursor(flow)
        async with aclosing(_AsyncStream(self._http)) as stream:
            while (emitted := await self._next(cursor, stream)) is not None:
                try:
                    if tell is not None and inspect.isawaitable(answer := tell(emitted.value)):
                        await answer
                except BaseException as error:
                    cursor.throw(error)
                else:
                    cursor.send(None)
        return cursor.value

    async def iterate(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """What the flow emits, one by one."""
        cursor = Cursor(flow)
        async with aclosing(_AsyncStream(self._http)) as stream:
            while (emitted := await self._next(cursor, stream)) is not None:
                yield emitted.value
                cursor.send(None)

    async def _next(self, cursor: Cursor[Any], stream: _AsyncStream) -> Emit | None:
        """Perform actions until the flow emits something, or None if it ends without."""
        while (action := cursor.action) is not None:
            if isinstance(action, Emit):
                return action
            try:
                outcome = await self._perform(action, stream)
            except BaseException as error:  # a cancellation too: the flow may have a last wish
                cursor.throw(error)
            else:
                cursor.send(outcome)
        return None

    async def _perform(self, action: Action, stream: _AsyncStream) -> Any:
        match action:
            case Send():
                with anyio.CancelScope(shield=action.shielded):
                    return await self._http.request(**_options(action, self._http.timeout))
            case Open():
                return await stream.open(action)
            case Next():
                return await stream.next()
            case Close():
                return await stream.aclose()
            case Sleep(seconds):
                return await anyio.sleep(seconds)
