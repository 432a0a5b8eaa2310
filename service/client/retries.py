"""When a request is made again: which answers ask for it, and how long to wait before."""

import random
import time
from email.utils import parsedate_to_datetime

import httpx

from bestofn.service.client.actions import Flow, Open, Send, Sleep
from bestofn.service.client.errors import error_of
from bestofn.service.core.errors import Unavailable

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 8.0
LONGEST_ASKED_SECONDS = 30.0  # a server that asks for more is too busy for a caller who waits
_PASSING = frozenset({408, 425, 429, 502, 503, 504})


def call(action: Send | Open, server: str, limit: int) -> Flow[httpx.Response]:
    """Make a request, again up to `limit` times while it is lost or refused for reasons that pass, until it succeeds.

    Raises:
        Unavailable: it was lost each time.
        BestOfNError: what the server refused it with.
    """
    attempt = 0
    while True:
        try:
            response: httpx.Response = yield action
        except httpx.UnsupportedProtocol as error:
            raise Unavailable(f"{server!r} is no address of a server: it starts with http://") from error
        except httpx.TransportError as error:
            if attempt >= limit:
                said = str(error) or type(error).__name__
                raise Unavailable(f"{server} cannot be reached ({said}); start it, or correct the address") from error
            delay = backoff(attempt)
        else:
            if response.is_success:
                return response
            asked = asked_delay(response)
            if attempt >= limit or not passes(response) or (asked or 0.0) > LONGEST_ASKED_SECONDS:
                raise error_of(response)
            delay = max(asked or 0.0, backoff(attempt))
        yield Sleep(delay)
        attempt += 1


def backoff(attempt: int) -> float:
    """Seconds before the next attempt, doubling; a quarter is chance, so that callers do not come all at once."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0**attempt) * random.uniform(0.75, 1.0)


def passes(response: httpx.Response) -> bool:
    """Whether the same request may succeed later: `x-should-retry` says so, else the status."""
    said = response.headers.get("x-should-retry", "").lower()
    return said == "true" if said in ("true", "false") else response.status_code in _PASSING


def asked_delay(response: httpx.Response) -> float | None:
    """The seconds of `retry-after-ms` or Retry-After, which may also be a date; None if there is neither."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = response.headers.get(name)
        if said is None:
            continue
        try:
            return max(0.0, float(said) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except ValueError:
            continue
    return None
