"""Running the application: a listening socket, uvicorn, and an end that answers those who still wait."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from bestofn.service.api.app import check_queue, create_app
from bestofn.service.api.dependencies import Context
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.telemetry import traces

GRACE_SECONDS = 10
BACKLOG = 2048
# Longer than clients (httpx, openai: 5 s) and load balancers (60 s) keep an idle connection: if we closed it first, a
# request that is on its way just then would be lost.
IDLE_SECONDS = 75


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
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await asyncio.to_thread(traces.flush)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started:
            self._loop.call_soon_threadsafe(self._context().stopping.set)
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
        raise SetupError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --port"
        ) from error


def address_of(listening: socket.socket) -> str:
    """The socket's address as a url, as seen from this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` gets the address once calls are answered.

    Raises:
        SetupError: the address cannot be used, the queue is unfit, or other machines could call without keys.
    """
    app = create_app(settings)
    # Once more before the start, since what the application raises then is buried in uvicorn's traceback.
    asyncio.run(check_queue(settings))
    with listen(settings.host, settings.port) as listening:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        server = _Server(config, lambda: app.state.context, lambda: on_ready(address_of(listening)))
        server.run(sockets=[listening])
