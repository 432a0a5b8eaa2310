"""bestofn up: queue, API and worker on this machine."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import httpx
import typer
from redis.exceptions import RedisError

from bestofn.cli import options
from bestofn.cli.console import FAILURE, say
from bestofn.cli.process_supervisor import STOP_SECONDS, Supervisor
from bestofn.service.client.discovery import address_file, is_bestofn
from bestofn.service.core.errors import SetupError
from bestofn.service.core.settings import Settings, load_settings, local_url
from bestofn.service.host.child_processes import stop
from bestofn.service.host.packages import can_draw_here
from bestofn.service.queue.connection import without_password
from bestofn.service.queue.embedded_server import LocalServer
from bestofn.service.queue.job_queue import Queue

KILLED = 128  # and the signal's number: the status that a shell gives a command which a signal has ended

EPILOG = """Examples:

`bestofn up`

`bestofn up --port 0 --run 'bestofn generate "a ring" -n 32'`

`bestofn up --model Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers --judge ./NVILA-Lite-2B-Verifier`

`bestofn up --pairwise-judge openai:http://localhost:8001/v1#Qwen/Qwen2.5-VL-7B-Instruct`
"""


def up(
    host: options.Host = None,
    port: options.Port = None,
    model: options.Model = None,
    judge: options.Judge = None,
    second_judge: options.SecondJudge = None,
    pairwise_judge: options.PairwiseJudge = None,
    devices: options.Devices = None,
    allow_unauthenticated: options.AllowUnauthenticated = False,
    command: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="COMMAND",
            help="Run this in a shell once all is ready, with BESTOFN_SERVER set, then stop; its status becomes ours.",
        ),
    ] = None,
) -> None:
    """Start queue, API and worker here and print the address; Ctrl-C stops them, with status 0.

    The queue is the server of REDIS_URL, or else an embedded one in the data folder.
    """
    settings = load_settings(
        host=host,
        port=port,
        model=model,
        judge=judge,
        second_judge=second_judge,
        pairwise_judge=pairwise_judge,
        devices=devices,
        allow_unauthenticated=allow_unauthenticated or None,
    )
    if not can_draw_here():
        raise SetupError("a worker needs its packages: pip install 'bestofn[worker]' (or start `bestofn serve` alone)")
    settings = settings.model_copy(update={"port": _open_port(settings)})
    # The queue's server is stopped also by a signal that comes while it starts.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(KILLED + number))
    with _queue(settings) as (redis_url, keep_queue):
        say(f"queue at {without_password(redis_url)}")
        flags = ["--host", settings.host, "--port", str(settings.port)]
        supervisor = Supervisor(
            {
                "the API": ["serve", *flags, *(["--allow-unauthenticated"] if settings.allow_unauthenticated else [])],
                "the worker": ["worker"],
            },
            {
                "BESTOFN_REDIS_URL": redis_url,
                "BESTOFN_DATA_DIR": str(settings.data_dir),
                "BESTOFN_MODEL": settings.model,
                "BESTOFN_JUDGE": settings.judge,
                "BESTOFN_SECOND_JUDGE": settings.second_judge or "",
                "BESTOFN_PAIRWISE_JUDGE": settings.pairwise_judge or "",
                "BESTOFN_DEVICES": settings.devices,
                # A person reads along here, unless the settings differ: warnings, in plain text.
                "BESTOFN_LOG_FORMAT": settings.log_format or "text",
                "BESTOFN_LOG_LEVEL": settings.log_level if "log_level" in settings.model_fields_set else "warning",
            },
            # One heat can kill half as many workers before its job fails, and must not take all the rest with it.
            2 * (settings.max_deliveries + 1),
        )
        address = local_url(settings.host, settings.port)
        file = address_file(settings)
        errand: list[subprocess.Popen[bytes]] = []

        def begin() -> None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_text(json.dumps({"server": address, "pid": os.getpid()}))
            say(f"ready at {address} (its description is at {address}/docs; Ctrl-C stops everything)")
            if command is not None:
                own = {"BESTOFN_SERVER": address, "BESTOFN_DATA_DIR": str(settings.data_dir)}
                errand.append(subprocess.Popen(command, shell=True, env={**os.environ, **own}))

        def watch() -> bool:
            keep_queue()
            return any(process.poll() is not None for process in errand)

        try:
            supervisor.run(lambda: _answers(f"{address}/readyz"), begin, watch)
        finally:
            file.unlink(missing_ok=True)
            stop(errand, STOP_SECONDS)  # the signal to this process may not have reached the command
    if command is not None:
        status = errand[0].wait() if errand else FAILURE
        raise typer.Exit(status if status >= 0 else KILLED - status)


def _open_port(settings: Settings) -> int:
    """The port to listen on, which is free now."""
    from bestofn.service.api.access import check_binding
    from bestofn.service.api.server import listen

    check_binding(settings)
    try:
        with listen(settings.host, settings.port) as listening:
            return int(listening.getsockname()[1])
    except SetupError as error:
        address = local_url(settings.host, settings.port)
        if not is_bestofn(address):
            raise
        raise SetupError(
            f"bestofn already runs at {address}: use that one, or choose another --port (and BESTOFN_DATA_DIR)"
        ) from error


@contextlib.contextmanager
def _queue(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """The queue's address, and what starts its server again if that is ours and has ended."""
    if settings.redis_url:
        asyncio.run(_check_queue(settings))
        yield settings.redis_url, lambda: None
        return
    with LocalServer(settings.data_dir) as server:
        yield server.url, server.restart


async def _check_queue(settings: Settings) -> None:
    """Raises SetupError if the server of REDIS_URL does not answer now, or is unfit; later it may come and go."""
    try:
        await (await Queue.connect(settings)).aclose()
    except (RedisError, ValueError) as error:
        raise SetupError(
            f"the queue's server of REDIS_URL cannot be used ({error}): start it, correct REDIS_URL, or leave it out, "
            "and `bestofn up` starts a server of its own"
        ) from error


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success  # by no proxy
    except httpx.HTTPError:
        return False
