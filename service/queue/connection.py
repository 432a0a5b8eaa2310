"""Connection to the queue's server: client options, and the check that the server can hold a queue."""

from collections.abc import Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from bestofn.service.core.errors import SetupError

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 10.0  # longest wait for a reply, above the longest blocking read
OLDEST_SERVER = (7, 0)

log = structlog.get_logger()


def connect_redis(url: str) -> Redis:
    """A client of the server at `url`. A call is repeated once if the connection breaks."""
    return Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=REPLY_SECONDS,
        retry=Retry(ConstantBackoff(0.05), 1),
        max_connections=4096,
        protocol=2,
    )


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
