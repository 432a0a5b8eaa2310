"""Addresses of pictures that need no key for a while: for an <img>, a mail, or the receiver of a webhook."""

import hmac
import re
import time
from urllib.parse import parse_qs, urlencode

from starlette.types import Scope

from bestofn.service.core.errors import NotAuthorized

VALID_SECONDS = 3600  # at least, and at most twice: an address stays the same for as long
_PICTURE = re.compile(r"/jobs/[0-9a-f]{1,64}/images/\d{1,2}")


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
