"""Where a job runs: on a server, or in this process."""

import importlib.util

from bestofn.service.client.discovery import running_server as running_server
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings


def choose(settings: Settings, *, local: bool) -> str | None:
    """The address of the server to use, or None to draw in this process.

    The one that was named (--server, BESTOFN_SERVER), else a running `bestofn up`, else this process.

    Raises:
        SetupError: there is no server, and drawing here needs packages that are not installed.
    """
    server = None if local else settings.server or running_server(settings)
    if server is None and not can_draw_here():
        raise SetupError(
            "no server was named and none is running, and drawing here needs the worker's packages: "
            "pass --server URL, run `bestofn up`, or pip install 'bestofn[worker]'"
        )
    return server


def can_draw_here() -> bool:
    """Whether the worker's packages are installed (they are not imported, which takes seconds)."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "diffusers", "transformers"))
