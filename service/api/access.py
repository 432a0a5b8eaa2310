"""Who may call: API keys and signed addresses where keys are set; else, on a loopback server, this machine alone."""

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import parse_qs, urlencode, urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from bestofn.service.api.key_file import Key, keys_file, parse, sha256
from bestofn.service.api.problem_details import problem_of
from bestofn.service.api.rate_limit import AT_END, OpenCalls
from bestofn.service.api.routes import web
from bestofn.service.core.errors import BestOfNError, HostNotAllowed, NotAuthorized, SetupError
from bestofn.service.core.settings import Settings

# Probes carry no key; the page and the description of the API are no secret, and the page asks for a key itself.
OPEN_PATHS = web.PATHS | {"/livez", "/readyz", "/openapi.json"}
READ_SECONDS = 1.0  # between two readings of the file of keys
VALID_SECONDS = 3600  # of a signed address: at least, and at most twice; it stays the same for as long
_PICTURE = re.compile(r"/jobs/[0-9a-f]{1,64}/images/\d{1,2}")

log = structlog.get_logger()


class Keyring:
    """Who may call. `on`: whether keys are asked for; once they are, they are for as long as the process lives.

    A file that cannot be read leaves the keys unchanged. A deleted file leaves no key: all requests are refused.
    `trouble` says so while it lasts.
    """

    def __init__(self, settings: Settings) -> None:
        """Reads the file, if there is one. Without one no keys are asked for.

        Raises:
            SetupError: it cannot be read, or the settings name it and it is not there.
        """
        self.file = keys_file(settings)
        self.on = settings.keys_file is not None
        self.trouble: str | None = None
        self._keys: tuple[Key, ...] = ()
        self._text: str | None = None
        self.refresh()
        if self.trouble is not None:
            raise SetupError(f"{self.trouble}; mend it, or make a key: bestofn keys add NAME")

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, key: str) -> str | None:
        """The name of a key. All hashes are compared, so that the time of a call gives nothing away."""
        sent, found = sha256(key), None
        for known in self._keys:
            if hmac.compare_digest(sent, known.sha256):
                found = known.name
        return found

    def refresh(self) -> None:
        """Reads the file: the whole of it each time, since links and fast writers may leave its time as it was."""
        try:
            text = self.file.read_text(encoding="utf-8")
            if text != self._text:
                self._keys, self._text, self.on = parse(text, self.file), text, True
            self.trouble = None
        except (FileNotFoundError, NotADirectoryError):
            self._keys, self._text = (), None
            self.trouble = f"{self.file} is not there" if self.on else None
        except (OSError, UnicodeDecodeError, SetupError) as error:
            self.on = True
            self.trouble = error.detail if isinstance(error, SetupError) else f"{self.file} cannot be read: {error}"

    async def watch(self) -> None:
        """Read the file every second in the background and log every change."""
        logged = None
        loop = asyncio.get_running_loop()
        # A thread of its own: lookups of host names may hold all of the loop's threads for seconds.
        reader = ThreadPoolExecutor(1, "keys")
        while True:
            now = self.on, self.trouble, self._keys
            if self.on and now != logged:
                names = sorted({key.name for key in self._keys})
                if self.trouble is None:
                    log.info("keys in force", file=str(self.file), names=names)
                else:
                    log.error("the keys cannot be read", why=self.trouble, still_in_force=names)
            logged = now
            await asyncio.sleep(READ_SECONDS)
            try:
                await loop.run_in_executor(reader, self.refresh)
            except Exception:  # or no key could be revoked any more
                log.exception("the keys could not be looked at")


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


def check_host(
    headers: Headers, allowed: Sequence[str] = (), public_url: str | None = None, origins: Sequence[str] = ()
) -> None:
    """Raises HostNotAllowed unless Host is a loopback name, or allowed, and Origin, if sent, is this very server.

    `public_url` is an address of this server too, behind a proxy. `origins` are other sites whose pages may call.

    Any web page can make a browser call a loopback port. Its Origin gives it away; with DNS rebinding its Host does.
    """
    host = headers.get("host", "")
    name = _name(f"//{host}")
    if not (is_loopback(name) or name in allowed or (name and name == _name(public_url or ""))):
        raise HostNotAllowed(
            f"Host is {host[:100]!r}, but a server without API keys answers to localhost and 127.0.0.1 only; "
            "make a key with `bestofn keys add NAME` to serve other names"
        )
    origin = headers.get("origin")
    if origin is not None and ("*" in origins or origin.lower() in origins):
        return
    public = "/".join((public_url or "").lower().split("/")[:3])
    if origin is not None and origin.lower() != public and origin.lower().partition("://")[2] != host.lower():
        raise HostNotAllowed(
            f"a page of {origin[:100]!r} may not call a server without API keys; call it from {host!r}, or name the "
            "page's origin in BESTOFN_CORS_ORIGINS"
        )


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unfinished IPv6 address
        return ""


def sign(secret: bytes, path: str, now: float | None = None) -> str:
    """A picture's path with its signature.

    Args:
        secret: of the queue.
        path: such as /jobs/3f9a/images/1, without a prefix.
        now: seconds since 1970; None: the clock's.
    """
    expires = (int(time.time() if now is None else now) // VALID_SECONDS + 2) * VALID_SECONDS
    return f"{path}?{urlencode({'expires': expires, 'signature': _signature(secret, path, expires)})}"


def is_signed(scope: Scope) -> bool:
    """Whether a request reads a picture with a signature, which is not checked yet."""
    reads = scope["method"] in ("GET", "HEAD")
    return reads and b"signature=" in scope["query_string"] and _PICTURE.fullmatch(scope["path"]) is not None


def check_signature(secret: bytes, scope: Scope, now: float | None = None) -> None:
    """Raise NotAuthorized unless the signature is this queue's, of this path, and has not expired."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
    known = re.fullmatch(r"\d{1,12}", expires) and hmac.compare_digest(
        signature.encode(), _signature(secret, scope["path"], int(expires)).encode()
    )
    if not known:
        raise NotAuthorized("the signature of this address is not this server's: take the address as the job gives it")
    if int(expires) < (time.time() if now is None else now):
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
        self._allowed_hosts = settings.allowed_hosts
        self._public_url = settings.public_url
        self._origins = [origin.lower() for origin in settings.cors_origins]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            if self._loopback and not self._keyring.on:
                check_host(headers, self._allowed_hosts, self._public_url, self._origins)
            if self._keyring.on and scope["path"] not in self._open:
                if "authorization" not in headers and is_signed(scope):
                    scope["signed"] = True  # the job's route checks the signature, which needs the queue
                else:
                    scope["caller"] = check_key(headers, self._keyring)
                bind_contextvars(caller=scope.get("caller", ""))  # for the request's line in the log
        except BestOfNError as error:
            return await problem_of(error)(scope, receive, send)
        with ExitStack() as scope[AT_END]:
            if scope["path"] not in self._open:
                try:
                    self._calls.admit(scope)
                except BestOfNError as error:
                    return await problem_of(error)(scope, receive, send)
                if scope["method"] != "POST":  # a submission takes its turn once its body is here
                    await self._calls.take_turn(scope)
            await self._app(scope, receive, send)
