"""The limit of connections: idle ones give way to new ones, busy ones stay, and failed accepts leave few lines."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from bestofn.service.api.connections import (
    CONNECTIONS_KEPT,
    IDLE_SECONDS,
    KEPT_SECONDS,
    PACE_BYTES,
    AcceptErrors,
    Connections,
)
from bestofn.service.core.settings import Settings
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
LIMIT = 40


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Transport:
    """A connection whose client has not read `unread` bytes yet."""

    unread = 0
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True


def test_a_body_at_a_fair_pace_is_not_idle() -> None:
    clock = Clock()
    connections = Connections(LIMIT, clock)
    fair, trickling = (Transport() for _ in range(2))
    peers = [connections.opened(one) for one in (fair, trickling)]  # type: ignore[arg-type]
    for _ in range(3):
        clock.now += IDLE_SECONDS
        for peer, size in zip(peers, (PACE_BYTES, 1000), strict=True):
            connections.received(peer, size)
        connections.close_old()
        clock.now += 1
        connections.close_old()
    assert (fair.aborted, trickling.aborted) == (False, True)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_new_connection_at_the_limit_replaces_the_longest_idle(idle: Settings, serving: Serving) -> None:
    settings = idle.model_copy(update={"max_connections": LIMIT})
    with serving(settings) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http, ExitStack() as stack:
        job = http.post("/generate", json={"prompt": "p"}, headers={"Prefer": "respond-async"}).json()["id"]
        stream = stack.enter_context(httpx.stream("GET", f"{api.url}/jobs/{job}/events", timeout=PATIENCE))
        host, port = api.url.removeprefix("http://").split(":")
        connections = []
        for number in range(3 * LIMIT):
            connections.append(stack.enter_context(socket.create_connection((host, int(port)))))
            connections[-1].setblocking(False)
            if number % 3 == 0:
                connections[-1].send(b"GET /livez HTTP/1.1\r\nHost: local")  # never ends its request
        until(lambda: sum(map(is_closed, connections)) > 2 * LIMIT)
        calls = httpx.get(f"{api.url}/status", timeout=PATIENCE).json()["calls"]
        assert calls["connections"] <= calls["max_connections"] == LIMIT
        assert calls["closed_connections"] >= 2 * LIMIT
        assert [is_closed(connection) for connection in connections[: 2 * LIMIT]] == [True] * 2 * LIMIT
        assert not is_closed(connections[-1])
        http.delete(f"/jobs/{job}")
        assert "job_canceled" in stream.read().decode()  # busy all the time


def test_answers_of_an_ending_server_are_the_last_of_their_connections(idle: Settings) -> None:
    program = (
        "from bestofn.service.api import connections, server;"
        "from bestofn.service.core.settings import Settings;"
        f"connections.LAST_CALL_SECONDS = {PATIENCE};"
        "server.serve(Settings(port=0), lambda address: print(address, flush=True))"
    )
    named = {"BESTOFN_DATA_DIR": str(idle.data_dir), "BESTOFN_NAMESPACE": idle.namespace, "REDIS_URL": ""}
    started = [sys.executable, "-P", "-c", program]
    process = subprocess.Popen(started, env={**os.environ, **named}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        url = output.readline().strip()
    host, port = url.removeprefix("http://").split(":")
    with ThreadPoolExecutor() as threads, httpx.Client(base_url=url, timeout=PATIENCE) as http:
        try:
            waiting = threads.submit(httpx.post, f"{url}/generate", json={"prompt": "p"}, timeout=PATIENCE)
            until(lambda: http.get("/status").json()["calls"]["waiting_calls"])
            process.terminate()
            until(lambda: is_refused(host, int(port)))
            answers = waiting.result(), http.get("/livez")  # the server closes no idle connection yet
        finally:
            http.close()
            status = ended(process)
    assert [answer.status_code for answer in answers] == [202, 200]
    assert [answer.headers.get("connection") for answer in answers] == ["close", "close"]
    assert status == 0


def ended(process: "subprocess.Popen[str]") -> int:
    """The status of a process, which is killed if it does not end."""
    try:
        return process.wait(PATIENCE)
    finally:
        process.kill()


def is_refused(host: str, port: int) -> bool:
    """Whether no server listens there any more."""
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_too_many_busy_connections_leave_room_for_probes(idle: Settings, serving: Serving) -> None:
    settings = idle.model_copy(update={"max_connections": CONNECTIONS_KEPT + 16})
    with serving(settings) as api, ExitStack() as stack:
        http = httpx.Client(base_url=api.url, timeout=PATIENCE)
        stack.callback(http.close)
        job = http.post("/generate", json={"prompt": "p"}, headers={"Prefer": "respond-async"}).json()["id"]
        for _ in range(16):
            stream = stack.enter_context(httpx.stream("GET", f"{api.url}/jobs/{job}/events", timeout=PATIENCE))
            assert stream.status_code in (200, 429)
        assert httpx.get(f"{api.url}/livez", timeout=PATIENCE).status_code == 200


def test_connections_refuse_requests_when_all_but_a_few_are_busy() -> None:
    connections = Connections(CONNECTIONS_KEPT + 2)
    transports: list[Any] = [Transport() for _ in range(2)]
    peers = [connections.opened(transport) for transport in transports]
    for peer in peers:
        assert not connections.full
        connections.begin(peer)
    assert connections.full
    connections.end(peers[0])
    assert not connections.full
    connections.lost(peers[0])
    connections.end(peers[0])
    assert len(connections) == 1


def test_old_connections_are_closed_when_idle_or_when_their_client_reads_nothing() -> None:
    clock = Clock()
    connections = Connections(100, clock)
    idle, quiet, stuck, slow = transports = [Transport() for _ in range(4)]
    _, *busy = [connections.opened(transport) for transport in transports]  # type: ignore[arg-type]
    for peer in busy:
        connections.begin(peer)
    stuck.unread = slow.unread = 100_000
    for _ in range(20):
        connections.close_old()
        clock.now += IDLE_SECONDS / 10
        slow.unread -= 1
    assert [transport.aborted for transport in (idle, quiet, stuck, slow)] == [True, False, True, False]
    assert (len(connections), connections.closed) == (2, 2)


def test_kept_connection_outlives_those_of_proxies_until_a_request_begins() -> None:
    clock = Clock()
    connections = Connections(100, clock)
    kept, resumed, unread = transports = [Transport() for _ in range(3)]
    peers = [connections.opened(transport) for transport in transports]  # type: ignore[arg-type]
    for peer in peers:
        connections.begin(peer)
        connections.end(peer)
    unread.unread = 1
    clock.now += 3600  # which Envoy keeps one
    connections.resumed(peers[1])
    connections.close_old()
    assert [transport.aborted for transport in transports] == [False, False, True]
    clock.now += KEPT_SECONDS - 3600 - IDLE_SECONDS / 2
    connections.close_old()
    assert [kept.aborted, resumed.aborted] == [False, True]
    clock.now += IDLE_SECONDS
    connections.close_old()
    assert kept.aborted


async def test_failed_accepts_are_logged_once_a_second() -> None:
    clock = Clock()
    handler = AcceptErrors(clock)
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with capture_logs() as lines:
        for _ in range(1000):
            handler(asyncio.get_running_loop(), context)
        clock.now += 1.0
        handler(asyncio.get_running_loop(), context)
    assert [line["times"] for line in lines] == [1, 1000]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    program = (
        "import resource; from bestofn.service.host.cgroups import raise_descriptor_limit as r;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512));"
        "print(r(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["512", "512", "512"]


def test_refused_body_of_a_closing_connection_is_read(idle: Settings, serving: Serving) -> None:
    size = 20_000_000
    with serving(idle) as api:
        host, port = api.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {size}\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
            connection.sendall(bytes(size))
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload_too_large" in answer


def test_refused_body_that_waits_to_be_asked_for_closes_the_connection(idle: Settings, serving: Serving) -> None:
    with serving(idle) as api, httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
        waiting = {"Expect": "100-continue", "Content-Type": "application/json"}
        refused = http.post("/generate", content=bytes(100_000), headers=waiting)
        assert (refused.status_code, refused.headers["connection"]) == (413, "close")
        accepted = http.post("/generate", json={"prompt": "p"}, headers=waiting | {"Prefer": "respond-async"})
        assert accepted.status_code == 202
        assert "connection" not in accepted.headers
