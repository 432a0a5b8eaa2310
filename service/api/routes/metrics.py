"""GET /metrics: this process' requests and the state of the queue, for Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from bestofn.service.api.dependencies import ContextDep
from bestofn.service.api.queue_metrics import QueueState
from bestofn.service.queue.connection_errors import AWAY
from bestofn.service.queue.stats import read_stats
from bestofn.service.telemetry.api_metrics import REGISTRY

router = APIRouter()


@router.get("/metrics", response_class=Response, include_in_schema=False)
async def metrics(request: Request, context: ContextDep) -> Response:
    """200 even if the queue is away: bestofn_redis_up is 0 then, and what would be read from the queue is left out."""
    try:
        await context.ended.read(context.queue)
        stats = await read_stats(context.queue)
    except AWAY:
        stats = None
    registry = CollectorRegistry()
    for part in (REGISTRY, QueueState(stats, context.settings.image_budget_bytes), context.ended.registry):
        registry.register(part)
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=media_type)
