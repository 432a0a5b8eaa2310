"""A job after its submission: its result, its images, its end."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import read_prefer
from bestofn.service.api.dependencies import ContextDep, JobId
from bestofn.service.api.responses import MAX_PAGE, PAGE, image_answer, json_answer, result_of, wait
from bestofn.service.core.jobs import ACTIVE
from bestofn.service.core.schemas import JobResult

router = APIRouter(prefix="/jobs/{job_id}")
Offset = Annotated[int, Query(ge=0, le=1_000_000, description="First candidate and match of the page.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Candidates and matches a page.")]


@router.get("", response_model=JobResult, summary="A job's state, and its result once it has ended")
async def read_job(
    request: Request,
    context: ContextDep,
    job_id: JobId,
    offset: Offset = 0,
    limit: Limit = PAGE,
    prefer: Annotated[str | None, Header(description="`wait=n`: answer after n seconds or at the job's end.")] = None,
) -> Response:
    """200 whatever the status; Retry-After while the job is queued or runs. Candidates and bracket come in pages."""
    read = partial(result_of, context, job_id, offset=offset, limit=limit, caller=caller_of(request))
    result = await read()
    preference = read_prefer(prefer, context.settings.max_wait_seconds)
    headers = {}
    if preference.applied is not None:
        headers["Preference-Applied"] = preference.applied
        if result.status in ACTIVE and preference.seconds > 0:
            context.open_calls.enter(request.scope, "wait")
            await wait(context, request, job_id, preference.seconds)
            result = await read()
    answer = partial(json_answer, context.base, result, 200, headers)
    long = len(result.candidates) > PAGE
    return await context.queue.reader.off_loop(caller_of(request), answer) if long else answer()


@router.delete("", response_model=JobResult, summary="Cancel a job")
async def cancel_job(request: Request, context: ContextDep, job_id: JobId) -> Response:
    """Canceling twice, or a job that has ended, changes nothing. The answer is the job."""
    await context.queue.cancel(job_id)
    return json_answer(context.base, await result_of(context, job_id, caller=caller_of(request)))


@router.get("/images/{rank}", response_class=Response, summary="A winner's image")
async def read_image(context: ContextDep, job_id: JobId, rank: Annotated[int, Path(ge=1, le=16)]) -> Response:
    """Rank 1 is the best. The format is the job's."""
    return await image_answer(context, job_id, rank)


@router.get("/thumbnails/{candidate}", response_class=Response, summary="A small image of any candidate")
async def read_thumbnail(
    context: ContextDep, job_id: JobId, candidate: Annotated[int, Path(ge=0, le=1_000_000)]
) -> Response:
    """WebP of at most 256 pixels a side, for jobs that were submitted with `thumbnails`."""
    content = await context.queue.thumbnail(job_id, candidate)
    return Response(content, 200, {"Cache-Control": "private, max-age=3600, immutable"}, "image/webp")
