"""Connection to the queue's server: client options, and the check that the server can hold a queue."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from bestofn.service.core.errors import SetupError

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0  # longest wait for a reply, above the longest blocking read
MAX_CONNECTIONS = 32  # of a process
OLDEST_SERVER = (7, 0)

log = structlog.get_logger()


class _Pool(BlockingConnectionPool):
    """At most `max_connections`; a caller that is cancelled still gives its connection back."""

    async def release(self, connection: AbstractConnection) -> None:
        await asyncio.shield(super().release(connection))


def connect_redis(url: str) -> Redis:
    """A client of the server at `url`. A call is repeated once if the connection breaks.

    Calls are short, except for one or two blocking reads a process: further ones wait for a connection.
    """
    keepalive: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": _keepalive()}
    pool = _Pool.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=REPLY_SECONDS,
        **({} if url.startswith("unix:") else keepalive),
        retry=Retry(ConstantBackoff(0.05), 1),
        max_connections=MAX_CONNECTIONS,
        timeout=REPLY_SECONDS,
        protocol=2,
    )
    return Redis.from_pool(pool)


def _keepalive() -> dict[int, int]:
    """Options that find a peer behind a silent network within 20 s: also on a connection that only listens."""
    values = {"TCP_KEEPIDLE": 8, "TCP_KEEPALIVE": 8, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}


def check_server(info: Mapping[str, Any]) -> None:
    """Raise SetupError if a server with this `info` is too old, or deletes keys when its memory is full."""
    valkey = info.get("server_name") == "valkey"
    version = str(info.get("valkey_version" if valkey else "redis_version", "0.0"))
    if not valkey and tuple(map(int, version.split(".")[:2])) < OLDEST_SERVER:
        raise SetupError(f"the queue needs Redis 7.0 or newer, or Valkey 8 or newer; this is Redis {version}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        fix = "run `redis-cli config set maxmemory-policy noeviction`, or put it into the server's configuration"
        if int(info.get("maxmemory", 0)) > 0:
            raise SetupError(f"the queue's server would delete keys when its memory is full (policy {policy}); {fix}")
        log.warning("the queue's server would delete keys if it had a memory limit", policy=policy, fix=fix)
