"""The HTTP application: routes, guard and errors around one queue."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.exceptions
from fastapi import FastAPI

from bestofn.service.api import access as guard
from bestofn.service.api import problem_details as problem
from bestofn.service.api.connections import CONNECTIONS_KEPT, DESCRIPTORS_KEPT, ConnectionLimit, Connections, Linger
from bestofn.service.api.dependencies import Context
from bestofn.service.api.http_middleware import Cors, Head, JsonGzip, PathPrefix
from bestofn.service.api.openapi import Described
from bestofn.service.api.rate_limit import OpenCalls
from bestofn.service.api.request_log import Requests, is_probe
from bestofn.service.api.routes import events, generate, health, jobs, openai, status, web
from bestofn.service.api.webhooks import WebhookSender
from bestofn.service.core.settings import Settings
from bestofn.service.core.version import VERSION
from bestofn.service.pairwise.check_server import prompt_checker
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.job_queue import Queue

EXPIRE_SECONDS = 0.25

DESCRIPTION = """\
Inference-time scaling of text-to-image: a prompt comes in, N candidates are drawn, a judge compares them in a knockout
tournament, the best comes back.

    curl -f -H 'Content-Type: application/json' -H 'Accept: image/png' -o best.png \\
         -d '{{"prompt": "a photo of a red star left of a blue circle", "num_samples": 32}}' {server}/generate

Errors are `application/problem+json` (RFC 9457) with a stable `code`, and carry `Retry-After` where trying again helps.
"""


async def check_queue(settings: Settings) -> None:
    """Connect to the queue once. Raises SetupError if there is none, or none that fits; one that is down may return."""
    await (await Queue.connect(settings, may_be_away=True)).aclose()


async def _expire_jobs(queue: Queue) -> None:
    """End jobs at their deadline while no worker's heartbeat does it."""
    while True:
        with contextlib.suppress(redis.exceptions.RedisError):
            await queue.expire_jobs()
        await asyncio.sleep(EXPIRE_SECONDS)


def create_app(settings: Settings, *, descriptors: int | None = None) -> FastAPI:
    """The application. It connects to the queue of `settings` when it starts.

    Args:
        settings: settings of the API.
        descriptors: file descriptors that the process may have open; None: as many as it needs.

    Raises:
        SetupError: its keys cannot be read, or the settings would open it to other machines without any.
    """
    keyring = guard.check_binding(settings)
    limit = settings.max_connections
    if descriptors is not None:
        limit = max(2 * CONNECTIONS_KEPT, min(limit, descriptors - DESCRIPTORS_KEPT))
    connections = Connections(limit)
    calls = OpenCalls(settings.max_open_calls_per_key, connections.limit)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue = await Queue.connect(settings, may_be_away=True)
        app.state.context = context = Context(queue, settings, keyring, connections, calls, prompt_checker(settings))
        with contextlib.suppress(redis.exceptions.RedisError):
            await context.ended.read(queue)  # jobs that end from now on are counted
        works = [keyring.watch(), _expire_jobs(queue), connections.sweep()]
        if settings.webhook_secret:
            works.append(WebhookSender(context, settings.webhook_secret).run())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            await end_tasks(set(tasks))
            await queue.aclose()

    app = Described(
        keys=keyring.on,
        servers=[{"url": settings.public_url}] if settings.public_url else None,
        title="bestofn",
        version=VERSION,
        description=DESCRIPTION.format(server=settings.public_url or f"http://localhost:{settings.port}"),
        lifespan=lifespan,
        docs_url=None,  # `routes/web.py` has the page, without scripts of other servers
        redoc_url=None,
        telemetry={
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": is_probe,
        },
    )
    app.state.connections = connections
    app.add_middleware(guard.Guard, settings=settings, keyring=keyring, calls=calls)
    app.add_middleware(ConnectionLimit, connections=connections)
    app.add_middleware(JsonGzip)
    app.add_middleware(Head)
    app.add_middleware(Requests)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(PathPrefix, public_url=settings.public_url)  # around all of them
    app.add_middleware(Linger)
    problem.install(app)
    for module in (generate, jobs, events):
        app.include_router(module.router, tags=["Jobs"])
    for module in (health, status):
        app.include_router(module.router, tags=["Service"])
    for module in (openai, web):
        app.include_router(module.router)
    return app
