"""CORS: pages of the origins that a setting names may call the API from a browser."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

PREFLIGHT_SECONDS = 600  # a browser keeps the answer to a preflight this long
METHODS = ("GET", "HEAD", "POST", "DELETE")
# Headers of answers that scripts may read; the others that browsers show by themselves are not named.
EXPOSED = (
    "Content-Disposition",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "retry-after-ms",
    "WWW-Authenticate",
    "x-should-retry",
    "X-Bestofn-Answer",
    "X-Bestofn-Candidate",
    "X-Bestofn-Job",
    "X-Bestofn-Judge",
    "X-Bestofn-Model",
    "X-Bestofn-Rank",
    "X-Bestofn-Score",
    "X-Bestofn-Seed",
    "X-Bestofn-Warning",
    "X-Request-ID",
)


class Cors(CORSMiddleware):
    """ASGI middleware in front of the guard: a preflight carries no key. The key itself is a header, never a cookie."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=[origin.lower() for origin in origins],
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=PREFLIGHT_SECONDS,
        )
