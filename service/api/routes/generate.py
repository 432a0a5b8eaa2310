"""POST /generate and /rank: submit a job and, unless the caller prefers not to, wait for its result or winner."""

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import (
    EVENTS,
    OFFERS,
    Accepted,
    Preference,
    image_format,
    read_accept,
    read_prefer,
)
from bestofn.service.api.dependencies import CallHeaders, CallHeadersDep, Context, ContextDep
from bestofn.service.api.problem_details import problem_of
from bestofn.service.api.request_bodies import JsonRoute, UploadRoute
from bestofn.service.api.responses import Ending, failure_of, image_answer, json_answer, result_of, wait
from bestofn.service.api.routes.events import stream_of
from bestofn.service.api.submission import submit, submit_rank
from bestofn.service.core.errors import InvalidRequest, WaitTimeout
from bestofn.service.core.jobs import ACTIVE, ImageFormat
from bestofn.service.core.schemas import GenerateRequest, JobResult

UPLOAD_SECONDS = 300.0

router = APIRouter(route_class=JsonRoute)
_uploads = APIRouter(route_class=UploadRoute)


@router.post("/generate", response_model=JobResult, summary="Draw N candidates, judge them, return the best")
async def generate(request: Request, context: ContextDep, body: GenerateRequest, headers: CallHeadersDep) -> Response:
    """Wait for the result, unless `Prefer` says otherwise; a job that takes longer is answered 202 with its Location.

    `Accept: text/event-stream` gets the job's events, up to its result.
    `Accept: image/png` (webp, jpeg) gets the winner's bytes instead of JSON, and 504 if the job takes longer.
    A disconnect does not end the job, except with `Prefer: cancel-on-disconnect`. With an `Idempotency-Key` the same
    call returns to the same job.
    """
    accepted = read_accept(headers.accept)
    wanted = _image_format(headers.accept, accepted, body) if accepted.image_first else None
    preference = _enter_call(context, request, headers, accepted, OFFERS)
    key = headers.idempotency_key
    job_id, created = await submit(context, body, image_format=wanted, caller=caller_of(request), key=key)
    return await _answer(context, request, job_id, created, accepted, preference, headers.last_event_id)


@_uploads.post("/rank", response_model=JobResult, summary="Judge 2 to 64 images that exist, and rank them")
async def rank(request: Request, context: ContextDep, headers: CallHeadersDep) -> Response:
    """The job has one candidate an image, in their order: verdicts, ranks, bracket and events as of POST /generate.

    A form (`multipart/form-data`) has `prompt` and one part `images` a file. JSON has data URLs. Files are PNG, WebP or
    JPEG: each at most 16 MiB and 16 Mi pixels, together at most 32 MiB and 128 Mi pixels. The job keeps them until its
    end, and then the images of the first `top_k` ranks.
    """
    accepted = replace(read_accept(headers.accept), images=(), image_first=False)  # images are no answer here
    preference = _enter_call(context, request, headers, accepted, f"application/json, {EVENTS}")
    job_id, created = await _submitted(context, request, headers.idempotency_key)
    return await _answer(context, request, job_id, created, accepted, preference, headers.last_event_id)


router.include_router(_uploads)


def _enter_call(
    context: Context, request: Request, headers: CallHeaders, accepted: Accepted, offers: str
) -> Preference:
    """How long a submission waits; one that waits or streams is counted among its key's open calls.

    Raises:
        HTTPException: it accepts none of `offers`.
        TooManyCalls: the key has as many open calls as it may.
    """
    if not (accepted.json or accepted.images or accepted.events_first):
        raise HTTPException(406, f"Accept asks for {str(headers.accept)[:100]!a}; there is {offers}")
    preference = read_prefer(headers.prefer, context.settings.max_wait_seconds)
    if accepted.events_first or preference.seconds > 0:
        context.open_calls.enter(request.scope, "stream" if accepted.events_first else "wait")
    return preference


async def _answer(
    context: Context,
    request: Request,
    job_id: str,
    created: bool,
    accepted: Accepted,
    preference: Preference,
    last_event_id: str | None,
) -> Response:
    """Follow a submitted job as its caller wants, and answer.

    Args:
        context: state of this process.
        request: the submission.
        job_id: the job.
        created: whether the submission made it; else it is another one's, by its Idempotency-Key.
        accepted: kind of the answer.
        preference: how long to wait for it.
        last_event_id: id of the last event that a stream's caller has.
    """
    headers = {"Location": f"{context.base}/jobs/{job_id}"}
    applied = preference.applied
    if accepted.events_first:
        applied = "cancel-on-disconnect" if preference.cancel_on_disconnect else None
    if applied is not None:
        headers["Preference-Applied"] = applied
    if not created:
        headers["Idempotent-Replayed"] = "true"
    cancel = created and preference.cancel_on_disconnect
    caller = caller_of(request)
    if accepted.events_first:
        return await stream_of(context, job_id, last_event_id, caller=caller, cancel=cancel, headers=headers)
    ending = await wait(context, request, job_id, preference.seconds)
    if ending is Ending.HUNG_UP and cancel:
        await context.queue.cancel(job_id)
    result = await result_of(context, job_id, caller=caller)
    if result.status in ACTIVE:
        if accepted.image_first and preference.seconds > 0:
            limit = "before this server stops" if ending is Ending.STOPS else f"within {preference.seconds:g} s"
            late = WaitTimeout(f"the job was not done {limit}; it goes on at {headers['Location']}")
            return problem_of(late, job=job_id, headers=headers)
        return json_answer(context.base, result, 202, headers)
    failure = failure_of(result)
    if failure is not None:
        return problem_of(failure, job=job_id, headers=headers)
    if accepted.image_first:
        return await image_answer(context, job_id, 1, warnings=result.warnings, headers=headers)
    return json_answer(context.base, result, 200, headers)


def _image_format(header: str | None, accepted: Accepted, body: GenerateRequest) -> ImageFormat:
    """The image format for a caller of image bytes. Raises InvalidRequest where Accept and the body contradict."""
    named = body.format if "format" in body.model_fields_set else None
    wanted = image_format(accepted, named, GenerateRequest.model_fields["format"].default)
    if wanted is None:
        raise InvalidRequest(
            f"Accept asks for {str(header)[:100]!a}, but format is {named}; leave one out or make them agree",
            field="format",
        )
    return wanted


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
