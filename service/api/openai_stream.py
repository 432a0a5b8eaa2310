"""Streams of /v1/images/generations in OpenAI's events: the best so far as partial images, then the winner."""

import base64
import io
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from fastapi import Request
from fastapi.sse import format_sse_event
from PIL import Image
from redis.exceptions import RedisError

from bestofn.service.api.access import caller_of
from bestofn.service.api.dependencies import Context
from bestofn.service.api.event_translation import EventTranslator
from bestofn.service.api.openai_answers import images_answer, refusal_of
from bestofn.service.api.problem_details import document
from bestofn.service.api.responses import result_of
from bestofn.service.api.retried_calls import Call
from bestofn.service.api.routes.events import catch_up, paced, parts
from bestofn.service.api.sse import encode
from bestofn.service.core.errors import BestOfNError, ImageNotFound, Unavailable
from bestofn.service.core.jobs import Candidate, ImageFormat, JobSpec
from bestofn.service.core.openai_schemas import CompletedImage, ImagesRequest, PartialImage, error_body, quality_of
from bestofn.service.core.schemas import VerdictOut
from bestofn.service.queue.codec import Event
from bestofn.service.queue.connection_errors import why

log = structlog.get_logger()


def thresholds(num_samples: int, partial_images: int) -> list[int]:
    """Numbers of judged candidates at which a partial image is sent: equal parts of all, in ascending order."""
    shares = (math.ceil(num_samples * part / (partial_images + 1)) for part in range(1, partial_images + 1))
    return sorted({share for share in shares if share < num_samples})


async def image_events(
    context: Context, request: Request, body: ImagesRequest, job_id: str, call: Call | None
) -> AsyncGenerator[bytes, None]:
    """Events of a call with `stream`, encoded: partial images, then the completed image or an error.

    Args:
        context: of this process.
        request: the call.
        body: its body.
        job_id: its job.
        call: leaves the job if the caller hangs up; None: the job goes on.
    """
    ended = False
    try:
        spec = await context.queue.spec(job_id)
        async with aclosing(_partial_images(context, spec, body.partial_images or 0, caller_of(request))) as partials:
            async for partial in partials:
                yield format_sse_event(data_str=partial.model_dump_json(), event=partial.type)
        result = await result_of(context, job_id, limit=1, caller=caller_of(request))
        refusal = refusal_of(context, request, result)
        if refusal is not None:
            raise refusal
        answer = await images_answer(context, request, body, result, by_url=False)
        first = {"b64_json": answer.data[0].b64_json, "created_at": answer.created}
        ended = True
        completed = CompletedImage.model_validate(answer.model_dump() | first)
        yield format_sse_event(data_str=completed.model_dump_json(exclude_none=True), event=completed.type)
    except BestOfNError as error:
        ended = True
        yield _failed(error, job_id)
    except RedisError as error:
        log.warning("the queue was lost under a stream", job=job_id, error=str(error))
        ended = True  # the job goes on: whether it can be cancelled is not known
        yield _failed(Unavailable(f"{why(error)}; the job goes on"), job_id)
    finally:
        if call is not None and not ended and not context.stopping.is_set():
            context.later(call.leave(context, job_id))


async def _partial_images(
    context: Context, spec: JobSpec, partial_images: int, caller: str
) -> AsyncGenerator[PartialImage, None]:
    """The best candidate so far, at most `partial_images` times, as the job goes on; ends with it, or the server."""
    translator = EventTranslator(spec)
    left, sent, last = thresholds(spec.num_samples, partial_images), 0, None
    async with aclosing(paced(context, spec.id)) as stored:
        async for entries in stored:
            for part in parts(entries or ()):
                due = 0  # thresholds that this part reached
                async with context.turns.of(caller):
                    for entry in part if left else ():
                        await _follow(context, spec, translator, Event.read(*entry))
                        while left and translator.judged >= left[0]:
                            due = left.pop(0)
                if not due or translator.leader is None:
                    continue
                shown = await _shown(context, spec, translator.leader)
                if shown is not None and (translator.leader.index, shown[1]) != last:
                    last = (translator.leader.index, shown[1])
                    yield _partial(spec, translator.leader, sent, translator.judged, shown)
                    sent += 1


async def _follow(context: Context, spec: JobSpec, translator: EventTranslator, event: Event) -> None:
    """Note one event of the job."""
    if translator.missed(event):
        await catch_up(translator, (await context.queue.record(spec.id)).outcomes)
    for _ in translator.translate(event):
        pass


async def _shown(context: Context, spec: JobSpec, candidate: Candidate) -> tuple[bytes, ImageFormat] | None:
    """File bytes and format of a candidate's image, or of its thumbnail until its heat is done; None: neither."""
    try:
        return await context.queue.image(spec.id, candidate.index), spec.format
    except ImageNotFound:
        pass
    try:
        return await context.queue.thumbnail(spec.id, candidate.index), "webp"
    except ImageNotFound:
        return None  # beyond the thumbnails that are kept


def _partial(
    spec: JobSpec, leader: Candidate, index: int, judged: int, shown: tuple[bytes, ImageFormat]
) -> PartialImage:
    assert leader.seed is not None  # the job draws its candidates
    content, format = shown
    with Image.open(io.BytesIO(content)) as image:  # reads the header alone
        width, height = image.size
    return PartialImage(
        partial_image_index=index,
        b64_json=base64.b64encode(content).decode(),
        created_at=int(time.time()),
        output_format=format,
        size=f"{width}x{height}",
        quality=quality_of(spec.num_samples),
        candidate=leader.index,
        seed=leader.seed,
        verdict=VerdictOut.of(leader.verdict),
        judged=judged,
        num_samples=spec.num_samples,
    )


def _failed(error: BestOfNError, job_id: str) -> bytes:
    problem = document(error.status, error.code, error.detail) | {"job": job_id}
    return encode("error", {"type": "error", **error_body(problem)})
