"""Probes: whether this process lives, and whether a request would be served now."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from bestofn.service.api.dependencies import ContextDep
from bestofn.service.core.deployments import NO_WORKER_RETRY_SECONDS
from bestofn.service.core.errors import Unavailable
from bestofn.service.core.request_checks import forbidden_default
from bestofn.service.queue.admission import BUSY_RETRY_SECONDS

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
    reason = await context.queue.refuses()
    if reason is not None:
        raise Unavailable(reason, retry_after=BUSY_RETRY_SECONDS)
    workers = await context.queue.workers()
    if not workers:
        raise Unavailable("no worker is ready", retry_after=NO_WORKER_RETRY_SECONDS)
    forbidden = [forbidden_default(info.model, context.settings) for info in workers]
    if all(forbidden):
        raise Unavailable(f"a request without options is refused: {forbidden[0]}", retry_after=NO_WORKER_RETRY_SECONDS)
    return Ready(workers=len(workers))
