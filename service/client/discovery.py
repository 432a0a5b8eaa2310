"""Which server is meant: the one that is named, else the `bestofn up` of this user."""

import json
from pathlib import Path

import httpx

from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings

PROBE_SECONDS = 10.0  # where nothing listens, the answer is no at once; a server of a busy machine takes its time


def address_file(settings: Settings) -> Path:
    """Where `bestofn up` leaves the address of its API, for other programs of the same user."""
    return settings.data_dir / "server.json"


def running_server(settings: Settings) -> str | None:
    """The address of a `bestofn up` that runs and answers, if there is one."""
    try:
        server = str(json.loads(address_file(settings).read_text())["server"])
        answers = _get(f"{server}/livez").is_success
    except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError):
        return None
    return server if answers else None


def is_bestofn(address: str) -> bool:
    """Whether a server of this project answers at an address of this machine."""
    try:
        return bool(_get(f"{address}/openapi.json").json()["info"]["title"] == "bestofn")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return False


def _get(url: str) -> httpx.Response:
    """An answer of a server on this machine, which no proxy of the environment reaches."""
    return httpx.get(url, timeout=PROBE_SECONDS, trust_env=False)


def find_server(settings: Settings) -> str:
    """The address of the server that the settings name, else of a running `bestofn up`.

    Raises:
        SetupError: there is neither.
    """
    server = settings.server or running_server(settings)
    if server is None:
        raise SetupError(
            "no server was named and none is running: run `bestofn up`, set BESTOFN_SERVER, "
            "or pass its address, such as Client('http://127.0.0.1:8000')"
        )
    return server
