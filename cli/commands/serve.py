"""bestofn serve: the HTTP API alone."""

from typing import Annotated

import structlog
import typer

from bestofn.cli.console import say
from bestofn.service.core.settings import load_settings
from bestofn.service.telemetry import logs, start

log = structlog.get_logger()

EPILOG = """Examples:

`bestofn serve --port 8080`

`bestofn keys add alice; bestofn serve --host 0.0.0.0 --redis-url redis://queue:6379`
"""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="0: any.", show_default="8000")] = None,
    redis_url: Annotated[str | None, typer.Option(help="The queue's server.", show_default="of `bestofn up`")] = None,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Let other machines call without a key.")
    ] = False,
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
