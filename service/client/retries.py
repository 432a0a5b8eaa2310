"""When a request is made again: which answers ask for it, and how long to wait before."""

import httpx

from bestofn.service.client.actions import Flow, Open, Send, Sleep
from bestofn.service.client.errors import error_of
from bestofn.service.core.backoff import LONGEST_ASKED_SECONDS, asked_delay, backoff
from bestofn.service.core.errors import Unavailable

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
            raise Unavailable(f"{server!r} is not the address of a server: it starts with http://") from error
        except httpx.TransportError as error:
            if attempt >= limit:
                said = str(error) or type(error).__name__
                raise Unavailable(f"{server} cannot be reached ({said}); start it, or correct the address") from error
            delay = backoff(attempt)
        else:
            if response.is_success:
                return response
            asked = asked_delay(response.headers)
            if attempt >= limit or not passes(response) or (asked or 0.0) > LONGEST_ASKED_SECONDS:
                raise error_of(response)
            delay = max(asked or 0.0, backoff(attempt))
        yield Sleep(delay)
        attempt += 1


def passes(response: httpx.Response) -> bool:
    """Whether the same request may succeed later: `x-should-retry` says so, else the status."""
    said = response.headers.get("x-should-retry", "").lower()
    return said == "true" if said in ("true", "false") else response.status_code in _PASSING
