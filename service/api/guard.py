"""Who may call: API keys where they are set, and on an open loopback server only pages and programs of this machine."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bestofn.service.api import page
from bestofn.service.api.problem import problem_of
from bestofn.service.errors import BestOfNError, HostRefused, NotAuthorized, SetupError
from bestofn.service.settings import Settings

# Probes carry no key; the page and the description of the API are no secret, and the page asks for a key itself.
OPEN_PATHS = page.PATHS | {"/livez", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host` (a name or an address)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def reached_at(settings: Settings) -> str:
    """The address that decides who can call: a container listens on all of its own, and is published on another."""
    return settings.published_on or settings.host


def check_binding(settings: Settings) -> None:
    """Refuse settings that would open the server to other machines without keys and without saying so.

    Raises:
        SetupError: the host is no loopback address, there are no keys, and `open_access` is off.
    """
    host = reached_at(settings)
    if not (is_loopback(host) or settings.api_keys or settings.open_access):
        raise SetupError(
            f"a server on {host} can be called from other machines: set BESTOFN_API_KEYS, "
            f"listen on 127.0.0.1, or say BESTOFN_OPEN_ACCESS=1 (--open-access) if a network of yours protects it"
        )


def caller_of(authorization: str | None) -> str:
    """A short name for whoever holds a key, to keep callers apart without keeping their keys; "" without a key."""
    key = (authorization or "").partition(" ")[2].strip()  # however the scheme before it is spelled
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""


def check_key(headers: Headers, keys: Sequence[str]) -> None:
    """Raises NotAuthorized unless `Authorization: Bearer` carries one of the keys."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise NotAuthorized("this server wants a key: send the header Authorization: Bearer KEY")
    sent = given.strip().encode()
    # All keys are compared, so that the time taken tells nothing about which one was near.
    if not sum(hmac.compare_digest(sent, key.encode()) for key in keys):
        raise NotAuthorized("the key in the Authorization header is not one of this server's")


def check_host(headers: Headers, allowed: Sequence[str] = ()) -> None:
    """Raises HostRefused unless Host is a loopback name, or allowed, and Origin, if sent, is this very server.

    Any web page can make a browser call a loopback port. Its Origin gives it away; with DNS rebinding its Host does.
    """
    host = headers.get("host", "")
    name = _name(f"//{host}")
    if not (is_loopback(name) or name in allowed):
        raise HostRefused(
            f"Host is {host[:100]!r}, but a server without API keys answers to localhost and 127.0.0.1 only; "
            "set BESTOFN_API_KEYS to serve other names"
        )
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        raise HostRefused(f"a page of {origin[:100]!r} may not call a server without API keys; call it from {host!r}")


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unfinished IPv6 address
        return ""


class Guard:
    """ASGI middleware in front of everything, so that a refused call costs neither parsing nor a look at the queue."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = settings.api_keys
        self._open = OPEN_PATHS | ({"/metrics"} if settings.open_metrics else frozenset())
        self._check_host = not settings.api_keys and is_loopback(reached_at(settings))
        self._allowed_hosts = settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            if self._check_host:
                check_host(headers, self._allowed_hosts)
            if self._keys and scope["path"] not in self._open:
                check_key(headers, self._keys)
        except BestOfNError as error:
            return await problem_of(error)(scope, receive, send)
        await self._app(scope, receive, send)
