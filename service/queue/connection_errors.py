"""Which errors say that the queue's server cannot serve now but may later: they are waited for, or answered 503."""

import os
from errno import ENOSPC

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


def why(error: BaseException) -> str:
    """What an error that is `away` says of the queue's server, in plain words."""
    if not isinstance(error, ResponseError):
        return "the queue cannot be reached"
    if isinstance(error, OutOfMemoryError):
        return "the queue's memory is full"
    return f"the queue takes no writes now: {_no_writes(error)}"


def _no_writes(error: ResponseError) -> str:
    if isinstance(error, MasterDownError | ReadOnlyError):
        return "its server is a replica"
    text = str(error)
    if "NOREPLICAS " in text:
        return "too few replicas follow its server"
    if "AOF" not in text:
        return "its server could not save a snapshot to its disk, and its log says why"
    reason = text.rpartition(": ")[2]
    if reason == os.strerror(ENOSPC):
        return "the disk of its server is full"
    return f"its server cannot write to its disk ({reason})"
