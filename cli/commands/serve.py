"""bestofn serve: the HTTP API alone."""

import structlog

from bestofn.cli import options
from bestofn.cli.console import say
from bestofn.service.core.settings import load_settings
from bestofn.service.telemetry import logs, start

log = structlog.get_logger()

EPILOG = """Examples:

`bestofn serve --port 8080`

`bestofn keys add alice; bestofn serve --host 0.0.0.0 --redis-url redis://queue:6379`
"""


def serve(
    host: options.Host = None,
    port: options.Port = None,
    redis_url: options.RedisUrl = None,
    allow_unauthenticated: options.AllowUnauthenticated = False,
) -> None:
    """Serve the HTTP API. It needs a queue (REDIS_URL, or a running `bestofn up`) and no torch."""
    from bestofn.service.api.server import serve as run

    settings = load_settings(
        host=host, port=port, redis_url=redis_url, allow_unauthenticated=allow_unauthenticated or None
    )
    start(settings, "api")

    def announce(address: str) -> None:
        if logs.as_json(settings):
            log.info("the API is ready", address=address)
        else:
            say(f"the API is at {address}, its description at {address}/docs")

    run(settings, announce)
