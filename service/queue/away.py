"""Which errors say that the queue's server cannot serve now but may later: they are waited for, or answered 503."""

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

# A server that loads its file, or has too many clients, is a ConnectionError too; one that is full may have room later.
AWAY = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, MasterDownError)
_NO_WRITES = ("MISCONF ", "NOREPLICAS ")  # its disk is full or broken, or too few replicas listen


def away(error: BaseException) -> bool:
    """Whether the same call may succeed later on this server, or on the one that takes its place."""
    if isinstance(error, AWAY):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _NO_WRITES)
