"""POST /rank: judge images that exist, and answer as POST /generate does."""

import asyncio

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import EVENTS, read_accept
from bestofn.service.api.dependencies import CallHeadersDep, Context, ContextDep
from bestofn.service.api.json_body import UploadRoute
from bestofn.service.api.routes.generate import answer, enter_call
from bestofn.service.api.submission import submit_rank
from bestofn.service.core.schemas import JobResult

UPLOAD_SECONDS = 300.0

router = APIRouter(route_class=UploadRoute)


@router.post("/rank", response_model=JobResult, summary="Judge 2 to 64 images that exist, and rank them")
async def rank(request: Request, context: ContextDep, headers: CallHeadersDep) -> Response:
    """The job has one candidate an image, in their order: verdicts, ranks, bracket and events as of POST /generate.

    A form (`multipart/form-data`) has `prompt` and one part `images` a file. JSON has data URLs. Files are PNG, WebP or
    JPEG: each at most 16 MiB and 16 Mi pixels, together at most 32 MiB and 128 Mi pixels. The job keeps them until its
    end, and then the images of the first `top_k` ranks.
    """
    accepted = read_accept(headers.accept)
    if not (accepted.json or accepted.events_first):
        raise HTTPException(406, f"Accept asks for {str(headers.accept)[:100]!a}; there is application/json, {EVENTS}")
    preference = enter_call(context, request, accepted, headers.prefer)
    job_id, created = await _submitted(context, request, headers.idempotency_key)
    as_json = accepted if accepted.events_first else read_accept(None)
    return await answer(context, request, job_id, created, as_json, preference, headers.last_event_id)


async def _submitted(context: Context, request: Request, key: str | None) -> tuple[str, bool]:
    """Read the body in the caller's turn, and submit its job; the body is dropped before the wait for the result."""
    caller = caller_of(request)
    async with context.upload_turns.of(caller):
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                body = b"".join([chunk async for chunk in request.stream()])  # which the request does not keep
        except ClientDisconnect as error:
            raise HTTPException(400) from error
        except TimeoutError as error:
            late = f"the body took longer than {UPLOAD_SECONDS:.0f} s; send fewer or smaller images"
            raise HTTPException(408, late) from error
        upload = await context.upload_turns.read(request.headers.get("content-type", ""), body)
        return await submit_rank(context, upload, caller=caller, key=key)
