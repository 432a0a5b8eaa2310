"""What every route needs: the queue, the settings and the tokenizers of one API process."""

import asyncio
import math
import re
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel, Field

from bestofn.service.api.access import caller_of, check_signature
from bestofn.service.api.api_keys import Keyring
from bestofn.service.api.connections import Connections
from bestofn.service.api.deployments import Deployed, TokenCounters
from bestofn.service.api.queue_metrics import EndedJobs
from bestofn.service.api.rate_limit import OpenCalls, RefusalLimiter
from bestofn.service.api.request_bodies import UploadTurns
from bestofn.service.core.errors import JobNotFound
from bestofn.service.core.settings import Settings
from bestofn.service.core.turns import Turns
from bestofn.service.pairwise.check_server import CheckServer
from bestofn.service.queue.job_queue import Queue

STANDSTILL_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(slots=True)
class Context:
    """Of one API process. `stopping` is set when it should answer its waiting calls and end."""

    queue: Queue
    settings: Settings
    keyring: Keyring
    connections: Connections
    open_calls: OpenCalls
    prompt_checker: CheckServer | None = None
    ended: EndedJobs = field(default_factory=EndedJobs)
    refusal_limiter: RefusalLimiter = field(default_factory=RefusalLimiter)
    turns: Turns = field(default_factory=Turns)  # turns of steps on the event loop that take a few milliseconds
    upload_turns: UploadTurns = field(default_factory=UploadTurns)
    deployed: Deployed = field(init=False)
    counters: TokenCounters = field(init=False)
    base: str = field(init=False)  # public address of the API, before every path; "": relative to the server
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _standstill: str | None = None
    _looked_at: float = -math.inf

    def absolute(self, request: Request, path: str) -> str:
        """The address of a path for the caller of a request: public, or else as the request names the server."""
        return (self.base or str(request.base_url).rstrip("/")) + path

    def __post_init__(self) -> None:
        self.deployed, self.counters = Deployed(self.queue), TokenCounters(self.queue)
        self.base = self.settings.public_url or ""

    def stop(self) -> None:
        """Answer the waiting calls, and every call as the last of its connection."""
        self.connections.ending = True
        self.stopping.set()

    async def standstill(self) -> str | None:
        """Why no running job goes on, such as a full disk of the queue's server; None if jobs go on.

        Looked at once a second, however many callers read their jobs.
        """
        if time.monotonic() - self._looked_at >= STANDSTILL_SECONDS:
            self._looked_at = time.monotonic()
            self._standstill = await self.queue.refuses(jobs=False)
        return self._standstill

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run work in the background, for a caller who has gone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("work for a caller who has gone failed", error=str(task.exception()))


async def context_of(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


ContextDep = Annotated[Context, Depends(context_of)]


class CallHeaders(BaseModel):
    """Headers of a submission: the kind of answer, how long to wait for it, and what it repeats or resumes."""

    accept: str | None = None  # an OpenAPI document has no such parameter: it names the kinds of answers
    prefer: str | None = Field(None, description="`respond-async`, `wait=n` seconds, `cancel-on-disconnect`.")
    idempotency_key: str | None = Field(None, description="The same key and body again: the same job.")
    last_event_id: str | None = Field(None, description="Of a stream: resume after the event with this id.")


CallHeadersDep = Annotated[CallHeaders, Header()]


async def _checked_id(
    request: Request, context: ContextDep, job_id: Annotated[str, Path(examples=["3f9a0c61b2d84e57a1c0d9e8"])]
) -> str:
    """The id of a job that the caller may see, which is any where no keys are asked for.

    Ids become parts of keys in Redis: nothing but what we may have generated ever gets there.

    Raises:
        JobNotFound: the id is malformed, unknown, or of a job of another key.
        NotAuthorized: the request came with a signature in place of a key, and it is wrong or has expired.
    """
    if not re.fullmatch(r"[0-9a-f]{1,64}", job_id):
        raise JobNotFound(f"there is no job {job_id[:64]!a}")
    if "signed" in request.scope:
        secret, now = await context.queue.signing_key()
        check_signature(secret, request.scope, now)
    caller = caller_of(request)
    if caller and await context.queue.owner(job_id) != caller:
        raise JobNotFound(f"there is no job {job_id}")
    return job_id


JobId = Annotated[str, Depends(_checked_id)]
