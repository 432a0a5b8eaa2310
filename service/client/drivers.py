"""Drivers of flows over httpx: one blocks, the other awaits."""

import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import httpx
from httpx_sse import EventSource, ServerSentEvent

from bestofn.service.client.actions import Action, Close, Cursor, Emit, Flow, Next, Open, Send, Sleep
from bestofn.service.client.errors import ClientClosed
from bestofn.service.core.errors import JobCanceled

T = TypeVar("T")

CLOSING_SECONDS = 10.0  # that a blocking client which is being closed waits for calls of other threads
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
    if action.files is not None:
        options |= {"data": action.data, "files": action.files}
    if action.timeout is not None:
        options["timeout"] = action.timeout
    return options


def _check_open(action: Action, closing: bool) -> None:
    """Raise ClientClosed for an action that reaches for the server while the client is being closed."""
    if closing and (isinstance(action, Open) or (isinstance(action, Send) and not action.shielded)):
        raise ClientClosed


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
    """Runs flows with blocking calls, in any number of threads."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._process = os.getpid()
        self._closing = False
        self._calls: list[int] = []  # the thread of each
        self._changed = threading.Condition()

    def close(self, cancel_drawing: Flow[None]) -> None:
        """Close the connections, once the calls of other threads have ended or CLOSING_SECONDS are over.

        A call that closes the client within its callback ends before the connections do. In a forked process nothing is
        done: jobs and connections are those of the process that made the client.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            first, self._closing = not self._closing, True
        if first:
            self._run(cancel_drawing)  # the events of canceled jobs wake the threads that follow them
        own = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: set(self._calls) <= {own}, CLOSING_SECONDS)
            within_call = own in self._calls
        if not within_call:
            self._http.close()

    def run(self, flow: Flow[T], on_emit: Callable[[Any], object] | None = None) -> T:
        """The flow's value; `on_emit` gets what the flow emits. Raises ClientClosed."""
        self._check_process()
        own = threading.get_ident()
        with self._changed:
            if self._closing:
                raise ClientClosed
            self._calls.append(own)
        try:
            return self._run(flow, on_emit)
        except JobCanceled as error:
            if self._closing:
                raise ClientClosed from error
            raise
        finally:
            with self._changed:
                self._calls.remove(own)
                self._changed.notify_all()
                last = self._closing and not self._calls
            if last:
                self._http.close()

    def _run(self, flow: Flow[T], on_emit: Callable[[Any], object] | None = None) -> T:
        cursor = Cursor(flow)
        with closing(_Stream(self._http)) as stream:
            while cursor.action is not None:
                self._step(cursor, cursor.action, stream, on_emit)
        return cursor.value

    def iterate(self, flow: Flow[None]) -> Iterator[Any]:
        """What the flow emits, one by one."""
        self._check_process()
        cursor = Cursor(flow)
        with closing(_Stream(self._http)) as stream:
            while (action := cursor.action) is not None:
                if isinstance(action, Emit):
                    yield action.value
                self._step(cursor, action, stream)

    def _check_process(self) -> None:
        """Raise ClientClosed in a forked process, which would read the answers of the other one's connections."""
        if os.getpid() != self._process:
            raise ClientClosed("the client was made before this process was forked: make a new one in it")

    def _step(
        self, cursor: Cursor[Any], action: Action, stream: _Stream, on_emit: Callable[[Any], object] | None = None
    ) -> None:
        """Perform an action and go on to the next."""
        try:
            _check_open(action, self._closing)
            outcome = self._perform(action, stream, on_emit)
        except BaseException as error:  # Ctrl-C too: the flow may have a last wish
            cursor.throw(error)
        else:
            cursor.send(outcome)

    def _perform(self, action: Action, stream: _Stream, on_emit: Callable[[Any], object] | None) -> Any:
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
            case Emit(value) if on_emit is not None:
                return on_emit(value)


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


@dataclass(frozen=True, eq=False)
class _AsyncCall:
    task: int
    scope: anyio.CancelScope
    ended: anyio.Event


class AsyncDriver:
    """Runs flows with awaited calls."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._loop: anyio.lowlevel.EventLoopToken | None = None  # event loop of the first call
        self._closing = False
        self._calls: list[_AsyncCall] = []

    async def aclose(self) -> None:
        """End all calls, wait for the last requests of their flows, and close the connections.

        A call that closes the client within its callback ends before the connections do.
        """
        self._check_loop()
        self._closing = True
        own = anyio.get_current_task().id
        for call in self._calls:
            call.scope.cancel()
        with anyio.CancelScope(shield=True):
            for call in [call for call in self._calls if call.task != own]:
                await call.ended.wait()
        if not self._calls:
            await self._http.aclose()

    async def run(self, flow: Flow[T], on_emit: Callable[[Any], object] | None = None) -> T:
        """The flow's value; `on_emit` gets what the flow emits, and what it returns is awaited if it can be.

        Raises ClientClosed.
        """
        self._check_loop()
        if self._closing:
            raise ClientClosed
        call = _AsyncCall(anyio.get_current_task().id, anyio.CancelScope(), anyio.Event())
        self._calls.append(call)
        try:
            with call.scope:
                cursor = Cursor(flow)
                async with aclosing(_AsyncStream(self._http)) as stream:
                    while cursor.action is not None:
                        await self._step(cursor, cursor.action, stream, on_emit)
                return cursor.value
            raise ClientClosed
        finally:
            self._calls.remove(call)
            call.ended.set()
            if self._closing and not self._calls:
                await self._http.aclose()

    async def iterate(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """What the flow emits, one by one."""
        self._check_loop()
        cursor = Cursor(flow)
        async with aclosing(_AsyncStream(self._http)) as stream:
            while (action := cursor.action) is not None:
                if isinstance(action, Emit):
                    yield action.value
                await self._step(cursor, action, stream)

    def _check_loop(self) -> None:
        """Raise ClientClosed in another event loop than that of the first call, to which the connections belong."""
        own = anyio.lowlevel.current_token()
        self._loop = self._loop or own
        if own != self._loop:
            raise ClientClosed("the client belongs to another event loop: make one for this loop")

    async def _step(
        self, cursor: Cursor[Any], action: Action, stream: _AsyncStream, on_emit: Callable[[Any], object] | None = None
    ) -> None:
        """Perform an action and go on to the next."""
        try:
            _check_open(action, self._closing)
            outcome = await self._perform(action, stream, on_emit)
        except BaseException as error:  # a cancellation too: the flow may have a last wish
            cursor.throw(error)
        else:
            cursor.send(outcome)

    async def _perform(self, action: Action, stream: _AsyncStream, on_emit: Callable[[Any], object] | None) -> Any:
        match action:
            case Send(shielded=True):
                with anyio.fail_after(action.timeout, shield=True):
                    return await self._http.request(**_options(action, self._http.timeout))
            case Send():
                return await self._http.request(**_options(action, self._http.timeout))
            case Open():
                return await stream.open(action)
            case Next():
                return await stream.next()
            case Close():
                return await stream.aclose()
            case Sleep(seconds):
                return await anyio.sleep(seconds)
            case Emit(value) if on_emit is not None:
                if inspect.isawaitable(answer := on_emit(value)):
                    await answer
