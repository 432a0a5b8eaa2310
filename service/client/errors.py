"""Errors of the client: from a problem document to the error that it names, and calls of a closed client."""

from collections.abc import Mapping
from typing import Any

import httpx

from bestofn.service.core.errors import BestOfNError, Unavailable

_GATEWAY = frozenset({502, 503, 504})  # statuses of a proxy whose server is away


def _by_code(root: type[BestOfNError]) -> dict[str, type[BestOfNError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _by_code(kind)
    return found


_KINDS = _by_code(BestOfNError)


class ClientClosed(BestOfNError):
    """The client was closed before the call or during it; jobs that the client was drawing are canceled.

    Or it was made before this process was forked, or used in another event loop: neither shares its connections.
    """

    code = "client_closed"

    def __init__(self, detail: str = "the client is closed: make a new one") -> None:
        super().__init__(detail)


def error_of(response: httpx.Response) -> BestOfNError:
    """The error that an answer carries, from our server or from a proxy."""
    try:
        return error_from(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Unavailable if response.status_code in _GATEWAY else BestOfNError
        return kind(f"{response.request.url} answered {response.status_code}: is it a bestofn server?")


def error_from(problem: Mapping[str, Any]) -> BestOfNError:
    """The error of a problem document, or of OpenAI's form of one. Raises KeyError or TypeError if it is neither."""
    inner = problem.get("error", problem)
    detail = inner["detail"] if inner is problem else inner["message"]
    field = inner.get("field", inner.get("param"))
    return _KINDS.get(inner["code"], BestOfNError)(str(detail), field=field, retry_after=inner.get("retry_after"))
