"""Running the application: a listening socket, uvicorn, and an end that answers those who still wait."""

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from bestofn.service.api.app import check_queue, create_app
from bestofn.service.api.connections import KEPT_SECONDS, AcceptErrors
from bestofn.service.api.dependencies import Context
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, local_url
from bestofn.service.host.cgroups import raise_descriptor_limit
from bestofn.service.telemetry import traces

GRACE_SECONDS = 10
BACKLOG = 2048  # connections that wait in the system to be accepted
ACCEPTED_AT_ONCE = 32  # before the event loop goes on, and idle connections are closed for them
SWITCH_SECONDS = 0.001  # a thread that reads a large job lets the event loop go on after this long
FULL_COLLECTION_AFTER = 1000  # collections of the middle generation: a hundred times Python's own number


class _Server(uvicorn.Server):
    """Sets `stopping` at the first signal: waiting calls then get 202 instead of a broken connection."""

    def __init__(self, config: uvicorn.Config, context: Callable[[], Context], on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._context = context
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._loop.set_exception_handler(AcceptErrors())
            for listening in sockets or ():
                listening.listen(BACKLOG)  # asyncio has set it to the number that it accepts at once
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        await self._context().connections.end_idle()
        await super().shutdown(sockets)
        await asyncio.to_thread(traces.flush)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started:
            self._loop.call_soon_threadsafe(self._context().stop)
        if sig == signal.SIGTERM:
            self.should_exit = True  # an orderly end has status 0; uvicorn would raise the signal once more
        else:
            super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        SetupError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
        # Connections inherit it; asyncio sets it on those of its own sockets only. Without it an answer's body waits
        # until the client acknowledges the headers: 40 ms on every connection that is kept alive.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise SetupError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another {option}"
        ) from error


def address_of(listening: socket.socket) -> str:
    """The socket's address as a url, as seen from this machine."""
    return local_url(*listening.getsockname()[:2])


def server_config(app: FastAPI, trusted_proxies: Sequence[str] = ()) -> uvicorn.Config:
    """How uvicorn serves the application. `trusted_proxies`: whose X-Forwarded headers are believed."""
    return uvicorn.Config(
        app,
        http=app.state.connections.protocol(),
        ws="none",
        forwarded_allow_ips=list(trusted_proxies),
        log_config=None,
        access_log=False,
        lifespan="on",
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEPT_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )


def shorten_collections() -> None:
    """Let the garbage collector stop the event loop less often, and for a shorter time.

    Objects that exist now are never looked at again. With them, a full collection takes a tenth of a second and more,
    and callers who read large jobs cause several a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_AFTER)


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the address once calls are answered.

    Raises:
        SetupError: the address cannot be used, the queue is unfit, or other machines could call without keys.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings, descriptors=raise_descriptor_limit())
    # Once more before the start, since what the application raises then is buried in uvicorn's traceback.
    asyncio.run(check_queue(settings))
    shorten_collections()
    with listen(settings.host, settings.port) as listening:
        server = _Server(
            server_config(app, settings.trusted_proxies),
            lambda: app.state.context,
            lambda: on_ready(address_of(listening)),
        )
        server.run(sockets=[listening])
