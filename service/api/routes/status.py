"""GET /status: what runs here, for people and programs: workers, models, the queue, its server, and the limits."""

import time
from collections import Counter
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError

from bestofn.service.api.access import caller_of
from bestofn.service.api.dependencies import Context, ContextDep
from bestofn.service.core.jobs import Revision
from bestofn.service.core.request_model import Int64
from bestofn.service.core.schemas import CallerOut, QueueOut, ServerOut
from bestofn.service.core.version import COMMIT, VERSION
from bestofn.service.core.workers import WorkerInfo
from bestofn.service.queue.connection import PROBE_SECONDS, within
from bestofn.service.queue.connection_errors import away
from bestofn.service.queue.stats import QueueStats, read_caller, read_stats

router = APIRouter()
_STARTED = time.monotonic()


class WorkerOut(BaseModel):
    """A warm worker. `since` is a Unix time, `tflops_per_second` null until it has finished something,
    `pairwise_judge` the model that it asks in finals, null without one. `commit` is its image's, null without one.
    `blocks` says in fast mode on a CPU whether compiled blocks serve, or eager ones and why; else it is null."""

    name: str
    host: str
    device: str
    state: str
    slots: int
    model: Revision
    judge: Revision
    second_judge: Revision | None = None
    since: float
    tflops_per_second: float | None
    pairwise_judge: str | None
    commit: str | None
    blocks: str | None


class ModelStatus(Revision):
    """A generator that a warm worker holds, with the defaults of a request. Sizes are in pixels."""

    workers: int
    width: int
    height: int
    max_size: int
    num_inference_steps: int
    guidance_scale: float


class JudgeOut(Revision):
    workers: int


class CallsOut(BaseModel):
    """Connections and open calls of this API process, and what its limits refused or closed since its start."""

    connections: int
    max_connections: int
    waiting_calls: int
    event_streams: int
    refused_calls: Int64
    closed_connections: Int64


class LimitsOut(BaseModel):
    """Of one request, but for `max_queued_candidates`: of all that wait; and `max_open_calls_per_key`: of one key."""

    model_config = ConfigDict(from_attributes=True)
    max_samples: int
    max_steps: int
    max_guidance: float
    max_size: int
    max_tflops: float | None
    max_body_bytes: Int64
    max_queued_candidates: int
    max_open_calls_per_key: int
    max_wait_seconds: float
    result_ttl_seconds: int


class Status(BaseModel):
    """`queue` and `server` are null while the queue's server is away; `refuses` says why no job is taken now.

    `caller` is null without keys. `keys` are stale while their file cannot be read: those read last are in force.
    `commit` is that of the API's image, null without one.
    """

    status: Literal["ready", "no worker", "no queue", "not_accepting_jobs"]
    refuses: str | None
    version: str
    commit: str | None
    uptime_seconds: float
    workers: list[WorkerOut]
    models: list[ModelStatus]
    judges: list[JudgeOut]
    queue: QueueOut | None
    caller: CallerOut | None
    server: ServerOut | None
    keys: Literal["off", "on", "stale"]
    calls: CallsOut
    limits: LimitsOut


@router.get("/status", summary="Workers, models, the queue and the limits")
async def status(request: Request, context: ContextDep) -> Status:
    """200 whatever the state; `status` says whether a request would be served now."""
    caller = caller_of(request)
    try:
        async with within(PROBE_SECONDS):
            stats = await read_stats(context.queue)
            own = await read_caller(context.queue, stats.queue, caller) if caller else None
    except RedisError as error:
        if not away(error):
            raise
        stats, own = None, None
    keyring = context.keyring
    workers = stats.workers if stats is not None else ()
    judges = Counter(info.judge.revision for info in workers)
    return Status(
        status=_state(stats),
        refuses=stats.refuses if stats is not None else None,
        version=VERSION,
        commit=COMMIT,
        uptime_seconds=round(time.monotonic() - _STARTED, 1),
        workers=[_worker(info) for info in workers],
        models=_models(workers),
        judges=[JudgeOut(**judge.model_dump(), workers=number) for judge, number in judges.items()],
        queue=stats.queue if stats is not None else None,
        caller=own,
        server=stats.server if stats is not None else None,
        keys="off" if not keyring.on else "on" if keyring.trouble is None else "stale",
        calls=_calls(context),
        limits=LimitsOut.model_validate(context.settings),
    )


def _state(stats: QueueStats | None) -> Literal["ready", "no worker", "no queue", "not_accepting_jobs"]:
    if stats is None:
        return "no queue"
    if stats.refuses is not None:
        return "not_accepting_jobs"
    return "ready" if stats.workers else "no worker"


def _calls(context: Context) -> CallsOut:
    connections, calls = context.connections, context.open_calls
    return CallsOut(
        connections=len(connections),
        max_connections=connections.limit,
        waiting_calls=calls.count("wait"),
        event_streams=calls.count("stream"),
        refused_calls=calls.refused + connections.refused,
        closed_connections=connections.closed,
    )


def _worker(info: WorkerInfo) -> WorkerOut:
    named = {
        "name": info.worker,
        "slots": info.capacity,
        "model": info.model.revision,
        "judge": info.judge.revision,
        "second_judge": info.revisions[2],
        "since": info.started_at,
    }
    return WorkerOut.model_validate(info.model_dump(exclude={"model", "judge"}) | named)


def _models(workers: tuple[WorkerInfo, ...]) -> list[ModelStatus]:
    models, count = {info.model.revision: info.model for info in workers}, Counter(w.model.revision for w in workers)
    return [
        ModelStatus.model_validate({**info.model_dump(), **revision.model_dump(), "workers": count[revision]})
        for revision, info in models.items()
    ]
