"""Probes: whether this process lives, whether a request would be served now, and its metrics and the queue's."""

from typing import Literal

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.responses import Response

from bestofn.service.api.dependencies import ContextDep
from bestofn.service.api.queue_metrics import QueueState
from bestofn.service.core.deployments import NO_WORKER_RETRY_SECONDS
from bestofn.service.core.errors import Unavailable
from bestofn.service.core.request_checks import forbidden_default
from bestofn.service.queue.admission import BUSY_RETRY_SECONDS
from bestofn.service.queue.connection import PROBE_SECONDS, within
from bestofn.service.queue.connection_errors import away
from bestofn.service.queue.stats import read_stats
from bestofn.service.telemetry.metrics import API_REGISTRY

router = APIRouter()


@router.get("/livez", summary="The process lives")
async def livez() -> dict[str, str]:
    """200 as long as the process answers, whatever the queue and the workers do."""
    return {"status": "live"}


class Ready(BaseModel):
    """A server that would serve a request now."""

    status: Literal["ready"] = "ready"
    workers: int = Field(description="Warm workers.")


@router.get("/readyz", summary="The queue takes jobs and a worker is warm")
async def readyz(context: ContextDep) -> Ready:
    """200 with the number of warm workers; else 503 with what is wrong, such as a full disk of the queue's server."""
    async with within(PROBE_SECONDS):
        reason = await context.queue.refuses()
        workers = await context.queue.workers() if reason is None else []
    if reason is not None:
        raise Unavailable(reason, retry_after=BUSY_RETRY_SECONDS)
    if not workers:
        raise Unavailable("no worker is ready", retry_after=NO_WORKER_RETRY_SECONDS)
    forbidden = [forbidden_default(info.model, context.settings) for info in workers]
    if all(forbidden):
        raise Unavailable(f"a request without options is refused: {forbidden[0]}", retry_after=NO_WORKER_RETRY_SECONDS)
    return Ready(workers=len(workers))


@router.get("/metrics", response_class=Response, include_in_schema=False)
async def metrics(request: Request, context: ContextDep) -> Response:
    """200 even if the queue is away: bestofn_redis_up is 0 then, and what would be read from the queue is left out."""
    try:
        async with within(PROBE_SECONDS):
            await context.ended.read(context.queue)
            stats = await read_stats(context.queue)
    except RedisError as error:
        if not away(error):
            raise
        stats = None
    registry = CollectorRegistry()
    for part in (API_REGISTRY, QueueState(stats), context.ended.registry):
        registry.register(part)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=media_type)
