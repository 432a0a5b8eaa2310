"""Health of a worker: its event loop's liveness, and the server of /metrics, /livez (liveness), /readyz (readiness)."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from prometheus_client.exposition import choose_encoder

from bestofn.service.core.errors import SetupError
from bestofn.service.telemetry.metrics import WORKER_REGISTRY

BEAT_SECONDS = 1.0
SPINNING = 0.95  # share of a core that the loop's thread takes while it spins; a working loop takes a few percent


class Condition(StrEnum):
    """Condition of a worker."""

    WAITING = "waiting for weights"  # that another process downloads
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STALLED = "stalled"  # a tick has not returned for too long
    LEAVING = "leaving"


READY = frozenset({Condition.READY, Condition.BUSY})
LIVE = frozenset(Condition) - {Condition.STALLED}


class LoopMonitor:
    """Liveness of the event loop, asked for from the server's thread: it neither sleeps nor spins for too long."""

    def __init__(self) -> None:
        self._beat = self._calm = time.monotonic()

    async def run(self) -> None:
        """Beat every second, and note when the loop's thread was last not spinning."""
        before, cpu_before = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now, cpu = time.monotonic(), time.thread_time()
            self._beat = now
            if cpu - cpu_before < SPINNING * (now - before):
                self._calm = now
            before, cpu_before = now, cpu

    def stalled(self, stall_seconds: float) -> bool:
        """Whether the loop has slept or spun for `stall_seconds`."""
        return time.monotonic() - min(self._beat, self._calm) > stall_seconds


@contextmanager
def metrics_port(host: str, port: int | None, condition: Callable[[], Condition]) -> Iterator[int | None]:
    """Serve on this port from a thread during the `with`; yields the port, or None without one.

    Args:
        host: address to listen on.
        port: port; 0: any free one; None: no server.
        condition: called in the server's thread.

    Raises:
        SetupError: the address is in use or not of this machine.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        raise SetupError(
            f"cannot serve metrics on {host} port {port}: {error.strerror or error}; set another BESTOFN_METRICS_PORT"
        ) from error
    server.condition = condition
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    condition: Callable[[], Condition]

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the name server for this machine's name


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        condition = self.server.condition()
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, media_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, media_type, encode(WORKER_REGISTRY))
            case "/livez":
                self._report(condition, condition in LIVE)
            case "/readyz":
                self._report(condition, condition in READY)
            case _:
                self._answer(404, "text/plain", b"there are /metrics, /livez and /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _report(self, condition: Condition, well: bool) -> None:
        self._answer(200 if well else 503, "application/json", json.dumps({"status": condition}).encode())

    def _answer(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """A probe every few seconds is not worth a line."""
