"""Connection to the queue's server: client options, the end of tasks that use it, and the check of the server."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bestofn.service.core.errors import SetupError
from bestofn.service.queue.connection_errors import refused, why

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0  # longest wait for a reply, above the longest blocking read
SLOWEST_LINK = 64 * 1024  # bytes a second: files get this much more time on their way from or to the server
PROBE_SECONDS = 3.0  # for all that a probe reads, and less than the time that its caller waits
CANCEL_SECONDS = 0.1  # before a task is cancelled again
MAX_CONNECTIONS = 32  # connections of a process
OLDEST_SERVER = (7, 0)
SENTINEL, SENTINEL_PORT = "+sentinel", 26379

log = structlog.get_logger()


class _Pool(BlockingConnectionPool):
    """At most `max_connections`; a caller that is cancelled still gives its connection back."""

    async def release(self, connection: AbstractConnection) -> None:
        await asyncio.shield(super().release(connection))


class _SentinelPool(SentinelConnectionPool, _Pool):
    """The same, of the primary that sentinels name."""


class _Sentinel(Sentinel):
    """Sentinels that are asked by one caller at a time.

    redis-py swaps two of its list after an answer: two callers at once would overwrite one, which is then never asked
    again, nor closed.
    """

    def __init__(self, places: Sequence[tuple[str | None, int]], options: dict[str, Any]) -> None:
        super().__init__(places, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        async with self._asking:
            return await super().discover_master(service_name)  # type: ignore[no-any-return]


def connect_redis(url: str, reply_seconds: float | None = REPLY_SECONDS) -> Redis:
    """A client of the server at `url`. A call is repeated once if the connection breaks.

    Calls are short, except for one or two blocking reads a process: further ones wait for a connection.

    `redis+sentinel://host:26379,host:26379/NAME/0` (`rediss+sentinel` with TLS) asks these sentinels for the primary of
    that name, and again after every break.

    Args:
        url: address of the server.
        reply_seconds: longest wait for a whole reply, or for a whole command to be sent; None: the caller limits it.

    Raises:
        SetupError: the address cannot be read; the message holds no part of it that may be a password.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": reply_seconds,
        "retry": Retry(ConstantBackoff(0.05), 1),
        "protocol": 2,
    }
    if not url.startswith("unix:"):
        options |= {"socket_keepalive": True, "socket_keepalive_options": _keepalive()}
    parts = urlsplit(url)
    try:
        if not url.startswith("unix:") and "@" in parts.path + parts.query + parts.fragment:
            raise ValueError  # a password with / ? or # in it: its start would be taken for the host
        if parts.scheme.endswith(SENTINEL):
            return Redis.from_pool(_of_sentinels(parts, options))
        return Redis.from_pool(_Pool.from_url(url, max_connections=MAX_CONNECTIONS, timeout=REPLY_SECONDS, **options))
    except ValueError:
        raise SetupError(
            "REDIS_URL cannot be read: an address looks like redis://user:password@host:6379/0; in the password, "
            "characters such as @ / ? # are written %40 %2F %3F %23"
        ) from None


def _of_sentinels(parts: SplitResult, options: dict[str, Any]) -> SentinelConnectionPool:
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    name, _, database = parts.path.strip("/").partition("/")
    if not name or not hosts:
        raise ValueError
    places = [urlsplit(f"//{host}") for host in hosts.split(",")]
    shared = {"username": unquote(user) or None, "password": unquote(password) or None, **options}
    shared["ssl"] = parts.scheme == f"rediss{SENTINEL}"
    sentinels = _Sentinel([(place.hostname, place.port or SENTINEL_PORT) for place in places], shared)
    limits = {"max_connections": MAX_CONNECTIONS, "timeout": REPLY_SECONDS}
    return _SentinelPool(name, sentinels, db=int(database or 0), **limits, **shared)  # type: ignore[no-untyped-call]


class Transfer:
    """Calls that send or read files: a slow link gets the time that their bytes take.

    Attributes:
        redis: client without a limit of its own.
    """

    def __init__(self, address: str) -> None:
        self.redis: Any = connect_redis(address, reply_seconds=None)

    @asynccontextmanager
    async def __call__(self, size: int) -> AsyncIterator[Any]:
        """The client, for calls that end within `REPLY_SECONDS` and the time of `size` bytes."""
        async with within(REPLY_SECONDS + size / SLOWEST_LINK):
            yield self.redis

    async def read(self, key: str, field: int | None = None) -> bytes | None:
        """The value of a key, or that of a hash's field; None: there is none."""
        async with self(0) as redis:
            size = await (redis.strlen(key) if field is None else redis.hstrlen(key, str(field)))
        async with self(size) as redis:
            value = await (redis.get(key) if field is None else redis.hget(key, str(field)))
        return None if value is None else bytes(value)


async def close_redis(client: Redis) -> None:
    """Close a client's connections, to sentinels too."""
    await client.aclose()
    if isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: `wait_for` of Python 3.11, in which redis-py sends, can lose a cancel."""
    ended, running = set(tasks), {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_SECONDS)
    for task in ended:
        if not task.cancelled():
            task.exception()  # seen, so that the loop does not complain about it


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raise redis' TimeoutError if the body takes longer: a server that accepts calls and answers none is away."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise RedisTimeoutError(f"no answer within {seconds:g} s") from error


def without_password(url: str) -> str:
    """An address of a queue's server as it may be shown."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def _keepalive() -> dict[int, int]:
    """Options that find a peer behind a silent network within 20 s: also on a connection that only listens."""
    values = {"TCP_KEEPIDLE": 8, "TCP_KEEPALIVE": 8, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): value for name, value in values.items() if hasattr(socket, name)}


async def check_connection(client: Redis) -> None:
    """Raise SetupError if a server cannot hold a queue; passes on redis' errors of one that does not answer."""
    try:
        info = await client.info()
    except RedisError as error:
        if refused(error):
            raise SetupError(why(error)) from error
        if "DB index" in str(error):
            raise SetupError("REDIS_URL names a database that its server does not have: end it with /0") from error
        raise
    check_server(info)


def check_server(info: Mapping[str, Any]) -> None:
    """Raise SetupError if a server with this `info` is too old, of a cluster, or deletes keys when it is full."""
    valkey = info.get("server_name") == "valkey"
    version = str(info.get("valkey_version" if valkey else "redis_version", "0.0"))
    if not valkey and tuple(map(int, version.split(".")[:2])) < OLDEST_SERVER:
        raise SetupError(f"the queue needs Redis 7.0 or newer, or Valkey; this is Redis {version}")
    if info.get("redis_mode", "standalone") == "cluster":
        raise SetupError(
            "the queue's server is in cluster mode, which the queue's scripts cannot use; use a single server"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        fix = "run `redis-cli config set maxmemory-policy noeviction`, or put it into the server's configuration"
        if int(info.get("maxmemory", 0)) > 0:
            raise SetupError(f"the queue's server would delete keys when its memory is full (policy {policy}); {fix}")
        log.warning("the queue's server would delete keys if it had a memory limit", policy=policy, fix=fix)
