"""The HTTP application: routes, guard and errors around one queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import bestofn
from bestofn.service.api import generate, guard, health, jobs, problem
from bestofn.service.api.context import Context
from bestofn.service.api.tokens import TokenCounters
from bestofn.service.queue.queue import Queue
from bestofn.service.settings import Settings

DESCRIPTION = """\
Inference-time scaling of text-to-image: a prompt comes in, N candidates are drawn, a judge compares them in a knockout
tournament, the best comes back.

    curl -H 'Content-Type: application/json' -H 'Accept: image/png' -o best.png \\
         -d '{"prompt": "a photo of a red star left of a blue circle", "num_samples": 32}' http://localhost:8000/generate

Errors are `application/problem+json` (RFC 9457) with a stable `code`; where trying again helps they carry `Retry-After`.
"""


def create_app(settings: Settings, queue: Queue | None = None) -> FastAPI:
    """The application. It connects to the queue of `settings` unless it is given one, which it then does not close.

    Raises:
        SetupError: the settings would open it to other machines without keys.
    """
    guard.check_binding(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        used = queue or await Queue.connect(settings)
        app.state.context = Context(used, settings, TokenCounters(used.tokenizer))
        try:
            yield
        finally:
            if queue is None:
                await used.aclose()

    app = FastAPI(title="bestofn", version=bestofn.__version__, description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(guard.Guard, settings=settings)
    problem.install(app)
    for module in (generate, jobs, health):
        app.include_router(module.router)
    return app
