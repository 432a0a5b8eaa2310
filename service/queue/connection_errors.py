"""Errors of the queue's server: which of its replies mean "not here, not now", and in which words callers read them.

Errors that are `away` are waited for by workers and answered 503 by the API. All other replies are faults of ours.
"""

import os
import re
from errno import ENOSPC

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

NOT_HERE: dict[str, str] = {
    "LOADING": "its server loads its data",
    "UNBLOCKED": "its server changes its role",
    "READONLY": "its server is a replica",
    "MASTERDOWN": "its server is a replica without its primary",
    "CLUSTERDOWN": "its cluster is being reconfigured",
    "TRYAGAIN": "its cluster is being reconfigured",
}
"""Replies of a server that starts, fails over or has become a replica. Its connections are dropped."""

NOT_NOW: dict[str, str] = {
    "BUSY": "its server runs a long script",
    "OOM": "its memory is full",
    "MISCONF": "it takes no writes now",
    "NOREPLICAS": "it takes no writes now: too few replicas follow its server",
}
"""Replies of a server that serves the same call later."""

REFUSED: dict[str, str] = {
    "NOPERM": "its server does not allow our user this command or key: check its ACL",
    "NOAUTH": "its server asks for a password: check REDIS_URL",
    "WRONGPASS": "its server refuses our user or password: check REDIS_URL and its ACL",
}
"""Replies that an operator has to mend: a fault of the settings at start, waited for afterwards."""

AWAY: tuple[type[RedisError], ...] = (RedisConnectionError, RedisTimeoutError)
"""Classes of errors without a reply: the server cannot be reached."""

_REPLIES = NOT_HERE | NOT_NOW | REFUSED
# At the start of a reply, or inside the error of a script or a pipeline.
_KINDS: dict[type[RedisError], str] = {  # redis-py cuts the word off the text of these
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
    NoPermissionError: "NOPERM",
    AuthenticationError: "WRONGPASS",
}
_WORD = re.compile(rf"(?<!\w)({'|'.join(_REPLIES)})(?=\s|$)")


def reply_word(error: BaseException) -> str | None:
    """The word of the server's reply that names its state; None: another reply, or no reply at all."""
    if isinstance(error, BusyLoadingError):
        return "LOADING"
    if isinstance(error, ResponseError | AuthenticationError):
        found = _WORD.search(str(error))
        if found is not None:
            return found.group(1)
        return next((word for kind, word in _KINDS.items() if isinstance(error, kind)), None)
    return None


def away(error: BaseException) -> bool:
    """Whether the same call may succeed later, on this server or on the one that takes its place."""
    return isinstance(error, AWAY) or reply_word(error) is not None


def moved(error: BaseException) -> bool:
    """Whether another server may have the queue now, so that connections have to be made again."""
    return reply_word(error) in NOT_HERE


def refused(error: BaseException) -> bool:
    """Whether the server refuses our user."""
    return reply_word(error) in REFUSED


def why(error: BaseException) -> str:
    """An error that is `away`, in words for users."""
    word = reply_word(error)
    if word is None:
        return "the queue cannot be reached"
    if word == "MISCONF":
        return f"the queue takes no writes now: {_disk(str(error))}"
    return f"the queue cannot serve now: {_REPLIES[word]}"


def _disk(text: str) -> str:
    if "AOF" not in text:
        return "its server could not save a snapshot to its disk, and its log says why"
    reason = text.rpartition(": ")[2]
    if reason == os.strerror(ENOSPC):
        return "the disk of its server is full"
    return f"its server cannot write to its disk ({reason})"
