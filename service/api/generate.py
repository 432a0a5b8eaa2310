"""POST /generate: submit a job and, unless the caller would rather not, wait for its result or its winner's bytes."""

import hashlib
import json
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message

from bestofn.service.api.answers import image_answer, json_answer, location_of, result_of
from bestofn.service.api.context import Context, ContextDep
from bestofn.service.api.guard import caller_of
from bestofn.service.api.negotiate import Accepted, Preference, image_format, offers, read_accept, read_prefer
from bestofn.service.api.problem import problem_of
from bestofn.service.api.validate import choose_pair, job_spec, pairs_of, tflops
from bestofn.service.api.waiting import Ending, wait
from bestofn.service.errors import InvalidRequest, JobCanceled, JobFailed, UnsupportedMediaType, WaitTimeout
from bestofn.service.jobs import ACTIVE, ImageFormat, JobStatus
from bestofn.service.schemas import RANDOM_SEEDS, GenerateRequest, JobResult

MAX_KEY = 255


class JsonRoute(APIRoute):
    """A route whose body is JSON of limited size: anything else is refused before it is read, in our form of error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            _check_media_type(request.headers.get("content-type"))
            limit = request.app.state.context.settings.max_body_bytes
            return await handle(_limited(request, limit))

        return handle_json


router = APIRouter(route_class=JsonRoute)


@router.post("/generate", response_model=JobResult, summary="Draw N candidates, judge them, return the best")
async def generate(
    request: Request,
    context: ContextDep,
    body: GenerateRequest,
    accept: Annotated[str | None, Header(description=f"One of {offers()}.")] = None,
    prefer: Annotated[
        str | None, Header(description="`respond-async`, `wait=n` seconds, `cancel-on-disconnect`.")
    ] = None,
    idempotency_key: Annotated[str | None, Header(description="The same key and body again: the same job.")] = None,
) -> Response:
    """Waits for the result, unless `Prefer` says otherwise; a job that takes longer is answered 202 with its Location.

    `Accept: image/png` (webp, jpeg) gets the winner's bytes instead of JSON, and 504 if the job takes longer.
    The job of a caller who hangs up goes on, unless `Prefer: cancel-on-disconnect` asks to cancel it then; an
    `Idempotency-Key` lets the caller come back to it.
    """
    accepted, wanted = _read_accept(accept, body)
    preference = read_prefer(prefer, context.settings.wait_seconds)
    job_id, created = await _submit(context, body, wanted, request.headers.get("authorization"), idempotency_key)
    headers = {} if preference.applied is None else {"Preference-Applied": preference.applied}
    if not created:
        headers["Idempotent-Replayed"] = "true"
    ending = await wait(context, request, job_id, preference.seconds)
    if ending is Ending.HUNG_UP and created and preference.cancel_on_disconnect:
        await context.queue.cancel(job_id)
    return await _answer(context, job_id, accepted, preference, headers)


async def _answer(
    context: Context, job_id: str, accepted: Accepted, preference: Preference, headers: dict[str, str]
) -> Response:
    result = await result_of(context, job_id)
    place = {"Location": location_of(job_id)} | headers
    if result.status in ACTIVE:
        if accepted.image_first and preference.seconds > 0:
            late = WaitTimeout(
                f"the job was not done within {preference.seconds:g} s; it goes on at {place['Location']}"
            )
            return problem_of(late, job=job_id, headers=place)
        return json_answer(result, 202, headers)
    if result.status is JobStatus.FAILED:
        return problem_of(JobFailed(result.error or "the job failed"), job=job_id, headers=place)
    if result.status is JobStatus.CANCELED:
        return problem_of(JobCanceled("the job was cancelled"), job=job_id, headers=place)
    if accepted.image_first:
        return await image_answer(context, result, 1, headers)
    return json_answer(result, 200, headers)


async def _submit(
    context: Context, body: GenerateRequest, wanted: ImageFormat | None, authorization: str | None, key: str | None
) -> tuple[str, bool]:
    queue = context.queue
    live, announced = pairs_of(await queue.cards()), pairs_of(await queue.announced())
    pair = choose_pair(live, [replace(pair, capacities=()) for pair in announced], body.model, body.judge)
    await context.counters.load(pair.model.tokenizer_sha256)
    spec = job_spec(
        body,
        pair,
        context.settings,
        job_id=secrets.token_hex(12),
        random_seed=secrets.randbelow(RANDOM_SEEDS),
        count_tokens=context.counters.count,
        image_format=wanted,
    )
    scoped = fingerprint = None
    if key is not None:
        if not (0 < len(key) <= MAX_KEY and key.isprintable()):
            raise InvalidRequest(
                f"Idempotency-Key must have 1 to {MAX_KEY} printable characters", field="Idempotency-Key"
            )
        # Two callers who pick the same key must not get each other's pictures.
        scoped = f"{caller_of(authorization)}:{key}"
        asked = body.model_dump(mode="json", exclude_unset=True) | {"format": spec.format}
        fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return await queue.submit(spec, idempotency_key=scoped, fingerprint=fingerprint, cost=tflops(spec, pair))


def _read_accept(header: str | None, body: GenerateRequest) -> tuple[Accepted, ImageFormat | None]:
    """What to answer with, and the picture format if the header decides it."""
    accepted = read_accept(header)
    if not accepted.json and not accepted.images:
        raise HTTPException(406, f"Accept asks for {str(header)[:100]!a}; there is {offers()}")
    if not accepted.image_first:
        return accepted, None
    named = body.format if "format" in body.model_fields_set else None
    wanted = image_format(accepted, named, body.format)
    if wanted is None:
        raise InvalidRequest(
            f"Accept asks for {str(header)[:100]!a}, but format is {named}; leave one out or make them agree",
            field="format",
        )
    return accepted, wanted


def _check_media_type(header: str | None) -> None:
    media = (header or "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        said = f"Content-Type is {media[:100]!a}" if media else "the header Content-Type is missing"
        raise UnsupportedMediaType(
            f"{said}; send Content-Type: application/json (curl: -H 'Content-Type: application/json')",
            field="Content-Type",
        )


def _limited(request: Request, limit: int) -> Request:
    """The same request, whose body raises a 413 as soon as it is known to be longer than `limit` bytes."""
    # An HTTPException, since FastAPI turns every other error while it reads a body into "cannot be parsed".
    too_long = HTTPException(413, f"the body is longer than {limit:,} bytes; a request needs a few hundred")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_long
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise too_long
        return message

    return Request(request.scope, receive)
