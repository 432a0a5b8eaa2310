"""Who may call: API keys and signed addresses where keys are set; else, on a loopback server, this machine alone."""

import hmac
import re
from contextlib import ExitStack
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from bestofn.service.api.api_keys import Keyring
from bestofn.service.api.problem_details import problem_of
from bestofn.service.api.rate_limit import AT_END, OpenCalls
from bestofn.service.api.routes import web
from bestofn.service.core.errors import BestOfNError, HostNotAllowed, NotAuthorized, SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.host.loopback import is_loopback

# Probes carry no key; the page and the description of the API are no secret, and the page asks for a key itself.
OPEN_PATHS = web.PATHS | {"/livez", "/readyz", "/openapi.json"}
MONITORING = frozenset({"/metrics", "/status"})  # answered in a flood of other calls too: an alarm must not lie
VALID_SECONDS = 3600  # least lifetime of a signed address; at most twice. It stays the same for as long
_IMAGE_PATH = re.compile(r"/jobs/[0-9a-f]{1,64}/images/\d{1,2}")


def reached_at(settings: Settings) -> str:
    """The address that decides who can call: a container listens on all of its own, and is published on another."""
    return settings.published_host or settings.host


def check_binding(settings: Settings) -> Keyring:
    """The keys of a server with these settings, which must not be open to other machines without saying so.

    Raises:
        SetupError: the keys cannot be read, or other machines could call without a key.
    """
    host, keyring = reached_at(settings), Keyring(settings)
    if not (is_loopback(host) or keyring.on or settings.allow_unauthenticated):
        raise SetupError(
            f"other machines could call the server on {host} without a key: make one with `bestofn keys add NAME` "
            f"(stored in {keyring.file}), listen on 127.0.0.1, or set BESTOFN_ALLOW_UNAUTHENTICATED=1 "
            "(--allow-unauthenticated) on a protected network"
        )
    return keyring


def caller_of(request: HTTPConnection) -> str:
    """The name that goes with the key of a request; "" where no keys are asked for."""
    return str(request.scope.get("caller", ""))


def check_key(headers: Headers, keyring: Keyring) -> str:
    """The caller's name. Raises NotAuthorized unless `Authorization: Bearer` carries one of the keys."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise NotAuthorized(
            "this server wants a key: send the header Authorization: Bearer KEY (bestofn's commands: BESTOFN_API_KEY)"
        )
    caller = keyring.caller(given.strip())
    if caller is None:
        raise NotAuthorized("the key in the Authorization header is not one of this server's")
    return caller


def check_host(headers: Headers, settings: Settings) -> None:
    """Raises HostNotAllowed unless Host is a loopback name, or allowed, and Origin, if sent, is this very server.

    The public address is one of this server too, behind a proxy. Pages of `cors_origins` may call.

    Any web page can make a browser call a loopback port. Its Origin gives it away; with DNS rebinding its Host does.
    """
    host, public_url = headers.get("host", ""), settings.public_url or ""
    name = _name(f"//{host}")
    if not (is_loopback(name) or name in settings.allowed_hosts or (name and name == _name(public_url))):
        raise HostNotAllowed(
            f"Host is {host[:100]!r}, but a server without API keys answers to localhost and 127.0.0.1 only; "
            "make a key with `bestofn keys add NAME` to serve other names"
        )
    origin = headers.get("origin")
    if origin is None:
        return
    allowed = {"/".join(public_url.split("/")[:3]).lower(), *map(str.lower, settings.cors_origins)}
    if not ({origin.lower(), "*"} & allowed or origin.lower().partition("://")[2] == host.lower()):
        raise HostNotAllowed(
            f"a page of {origin[:100]!r} may not call a server without API keys; call it from {host!r}, or name the "
            "page's origin in BESTOFN_CORS_ORIGINS"
        )


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unfinished IPv6 address
        return ""


def sign(secret: bytes, path: str, now: float) -> str:
    """An image's path with its signature.

    Args:
        secret: the queue's signing key.
        path: such as /jobs/3f9a/images/1, without a prefix.
        now: seconds since 1970 by the clock that all API processes share, the queue's.
    """
    expires = (int(now) // VALID_SECONDS + 2) * VALID_SECONDS
    return f"{path}?{urlencode({'expires': expires, 'signature': _signature(secret, path, expires)})}"


def is_signed(scope: Scope) -> bool:
    """Whether a request reads an image with a signature, which is not checked yet."""
    reads = scope["method"] in ("GET", "HEAD")
    return reads and b"signature=" in scope["query_string"] and _IMAGE_PATH.fullmatch(scope["path"]) is not None


def check_signature(secret: bytes, scope: Scope, now: float) -> None:
    """Raise NotAuthorized unless the signature is this queue's, of this path, and has not expired."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
    known = re.fullmatch(r"\d{1,12}", expires) and hmac.compare_digest(
        signature.encode(), _signature(secret, scope["path"], int(expires)).encode()
    )
    if not known:
        raise NotAuthorized("the signature of this address is not this server's: take the address as the job gives it")
    if int(expires) < now:
        raise NotAuthorized("this address has expired: read the job again for a new one, or send a key with it")


def _signature(secret: bytes, path: str, expires: int) -> str:
    return hmac.digest(secret, f"{path}?{expires}".encode(), "sha256").hex()


class Guard:
    """ASGI middleware in front of everything, so that a refused call costs neither parsing nor a look at the queue."""

    def __init__(self, app: ASGIApp, settings: Settings, keyring: Keyring, calls: OpenCalls) -> None:
        self._app = app
        self._calls = calls
        self._keyring = keyring
        self._open = OPEN_PATHS | ({"/metrics"} if settings.metrics_without_key else frozenset())
        self._loopback = is_loopback(reached_at(settings))
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, path = Headers(scope=scope), scope["path"]
        with ExitStack() as scope[AT_END]:
            try:
                if self._loopback and not self._keyring.on:
                    check_host(headers, self._settings)
                if self._keyring.on and path not in self._open:
                    if "authorization" not in headers and is_signed(scope):
                        scope["signed"] = True  # the job's route checks the signature, which needs the queue
                    else:
                        scope["caller"] = check_key(headers, self._keyring)
                    bind_contextvars(caller=scope.get("caller", ""))  # for the request's line in the log
                if path in MONITORING:
                    await self._calls.take_turn(scope, path)
                elif path not in self._open:
                    self._calls.admit(scope)
                    if scope["method"] != "POST":  # a submission takes its turn once its body is here
                        await self._calls.take_turn(scope)
            except BestOfNError as error:
                return await problem_of(error)(scope, receive, send)
            await self._app(scope, receive, send)
