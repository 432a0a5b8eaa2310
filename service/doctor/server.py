"""Checks of the HTTP server: whether one answers, whether it would serve, and whether its version is ours."""

from collections.abc import Iterator

import httpx

from bestofn.service.api.server import listen
from bestofn.service.client.discovery import is_bestofn, running_server
from bestofn.service.client.errors import error_of
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, local_url
from bestofn.service.core.version import VERSION
from bestofn.service.doctor.findings import Finding
from bestofn.service.host.loopback import is_loopback, uses_proxies

ANSWER_SECONDS = 10.0  # a server of a busy machine takes its time


def server(settings: Settings) -> Iterator[Finding]:
    """The server that the command line would use, or the port that a new one would take."""
    address = settings.server or running_server(settings)
    if address is None:
        address = local_url(settings.host, settings.port)  # such as the API of the same container
        if not is_bestofn(address):
            yield _port(settings)
            return
    headers = {} if settings.api_key is None else {"Authorization": f"Bearer {settings.api_key}"}
    try:
        proxies = uses_proxies(address)
        with httpx.Client(base_url=address, headers=headers, timeout=ANSWER_SECONDS, trust_env=proxies) as http:
            version = str(http.get("/openapi.json").raise_for_status().json()["info"]["version"])
            ready = http.get("/readyz")
            allowed = http.get("/jobs/0")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        yield Finding("fail", "server", f"{address}: {reason}", "see that `bestofn serve` or `bestofn up` runs there")
        return
    if version == VERSION:
        yield Finding("ok", "server", f"{address}, version {version}")
    else:
        found = f"{address} runs version {version}, this is {VERSION}"
        yield Finding("warn", "server", found, "install the same version here, there and on the workers")
    if ready.is_success:
        yield Finding("ok", "ready", f"a request would be served now, workers warm: {ready.json().get('workers', '?')}")
    else:
        yield Finding("warn", "ready", error_of(ready).detail, "see the queue and the workers above")
    if allowed.status_code in (401, 403):
        yield Finding("warn", "access", error_of(allowed).detail, "set BESTOFN_API_KEY to one of the server's keys")


def _port(settings: Settings) -> Finding:
    """Whether a server could listen where the settings say."""
    host, port = settings.host, settings.port
    try:
        listen(host, port).close()
    except SetupError as error:
        found, _, fix = error.detail.partition("; ")
        if is_loopback(host):
            fix += f", or name the server that runs: BESTOFN_SERVER={local_url(host, port)}"
        return Finding("warn", "server", f"none is known: {found}", fix)
    return Finding("ok", "server", f"none runs; {host}:{port} is free")
