"""Where a job runs: on a server, or in this process."""

from bestofn.service.client.discovery import running_server as running_server
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings
from bestofn.service.host.packages import can_draw_here as can_draw_here


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
