"""What every route needs: the queue, the settings, what is deployed and the tokenizers of one API process."""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from bestofn.judge.verdict import Rule
from bestofn.service.api.access import caller_of, check_signature
from bestofn.service.api.api_keys import Keyring
from bestofn.service.api.connections import Connections
from bestofn.service.api.queue_metrics import EndedJobs
from bestofn.service.api.rate_limit import OpenCalls, RefusalLimiter
from bestofn.service.api.request_bodies import UploadTurns
from bestofn.service.core.deployments import NO_WORKER_RETRY_SECONDS, Deployment, choose_deployment, deployments_of
from bestofn.service.core.errors import BestOfNError, JobNotFound, Unavailable
from bestofn.service.core.settings import Settings
from bestofn.service.pairwise.check_server import PromptChecker
from bestofn.service.queue.job_queue import Queue
from bestofn.service.queue.job_reader import Turns

STANDSTILL_SECONDS = 1.0
FRESH_SECONDS = 0.25  # of the list of what is deployed
TOKENIZERS_KEPT = 8  # in memory; Gemma's takes about 200 MB

log = structlog.get_logger()


def _without_workers(announced: Deployment, live: Sequence[Deployment]) -> Deployment:
    """A deployment as a worker once announced it. Its pairwise judge counts until other workers say otherwise."""
    pairs = ((deployment.model.revision, deployment.judge.revision) for deployment in live)
    replaced = (announced.model.revision, announced.judge.revision) in pairs
    pairwise = None if replaced else announced.pairwise_judge
    return replace(announced, capacities=(), tflops_per_second=0.0, pairwise_judge=pairwise)


class Deployed:
    """The pairs of model and judge that a request can name."""

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._live: list[Deployment] = []
        self._announced: list[Deployment] = []
        self._stale_at = 0.0

    async def choose(
        self,
        model: str | None,
        judge: str | None,
        rule: Rule = Rule.MARGIN,
        *,
        finals: bool = False,
        any_model: bool = False,
    ) -> Deployment:
        """The pair that serves a request; arguments and errors as of `choose_deployment`.

        What was refused with an old list is tried with a new one.
        """
        choose = partial(choose_deployment, model=model, judge=judge, rule=rule, finals=finals, any_model=any_model)
        if self._live and self._clock() < self._stale_at:
            try:
                return choose(self._live, self._announced)
            except BestOfNError:
                pass
        live, announced = deployments_of(await self._queue.workers()), deployments_of(await self._queue.announced())
        self._live, self._announced = live, [_without_workers(deployment, live) for deployment in announced]
        self._stale_at = self._clock() + FRESH_SECONDS
        if not announced and await self._queue.redis.exists(self._queue.keys("pairs")):
            raise Unavailable(
                "the workers run another version of bestofn, whose jobs differ: update them, or this server",
                retry_after=NO_WORKER_RETRY_SECONDS,
            )
        return choose(self._live, self._announced)


class TokenCounters:
    """Tokenizers by the hash of their file, fetched once."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._lock = asyncio.Lock()

    async def load(self, sha256: str) -> None:
        """Make sure that `count` knows this tokenizer. Parsing a large one takes seconds: not on the event loop."""
        async with self._lock:
            if sha256 not in self._kept:
                content = await self._queue.tokenizer(sha256)
                tokenizer = await asyncio.to_thread(Tokenizer.from_buffer, content)
                # The file may ask for cutting or padding, which would hide how long a text is.
                tokenizer.no_truncation()
                tokenizer.no_padding()
                self._kept[sha256] = tokenizer
            self._kept.move_to_end(sha256)
            while len(self._kept) > TOKENIZERS_KEPT:
                self._kept.popitem(last=False)

    def count(self, sha256: str, text: str) -> int:
        """Tokens of `text`, control tokens included. Raises KeyError for a tokenizer that was not loaded."""
        return len(self._kept[sha256].encode(text).ids)


@dataclass(slots=True)
class Context:
    """Of one API process. `stopping` is set when it should answer its waiting calls and end."""

    queue: Queue
    settings: Settings
    keyring: Keyring
    connections: Connections
    open_calls: OpenCalls
    prompt_checker: PromptChecker | None = None
    ended: EndedJobs = field(default_factory=EndedJobs)
    refusal_limiter: RefusalLimiter = field(default_factory=RefusalLimiter)
    turns: Turns = field(default_factory=Turns)  # of steps on the event loop that take a few milliseconds
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
        check_signature(await context.queue.signing_key(), request.scope)
    caller = caller_of(request)
    if caller and await context.queue.owner(job_id) != caller:
        raise JobNotFound(f"there is no job {job_id}")
    return job_id


JobId = Annotated[str, Depends(_checked_id)]
