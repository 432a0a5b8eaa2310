"""Answers of /v1/images/generations in OpenAI's shape: a job's winners with their usage, at once or as a stream."""

import base64
import contextlib
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
from bestofn.service.api.problem_details import document
from bestofn.service.api.responses import failure_of, result_of
from bestofn.service.api.retried_calls import Call
from bestofn.service.api.routes.events import POSITION_SECONDS, catch_up, encode, paced, parts
from bestofn.service.core.errors import BestOfNError, ImageNotFound, Unavailable, WaitTimeout
from bestofn.service.core.jobs import ACTIVE, Candidate, ImageFormat, JobSpec
from bestofn.service.core.openai_schemas import (
    CompletedImage,
    GeneratedImage,
    ImagesRequest,
    ImagesResponse,
    PartialImage,
    TokenUsage,
    error_body,
    quality_of,
)
from bestofn.service.core.schemas import ImageOut, JobResult, VerdictOut
from bestofn.service.queue.codec import Event
from bestofn.service.queue.connection_errors import why
from bestofn.service.queue.job_events import follow_entries


async def images_answer(
    context: Context, request: Request, body: ImagesRequest, result: JobResult, *, by_url: bool | None = None
) -> ImagesResponse:
    """The answer about a job that has succeeded.

    Args:
        context: state of this process.
        request: the call.
        body: its body.
        result: the job.
        by_url: images as addresses or as bytes; None: as the body or the settings say.

    Raises:
        ImageNotFound, JobGone: the images went meanwhile.
    """
    if by_url is None:
        by_url = (body.response_format or context.settings.response_format) == "url"
    num_samples, width, height = (result.parameters[name] for name in ("num_samples", "width", "height"))
    return ImagesResponse(
        created=int(time.time()),
        data=[await _image(request, context, result, image, by_url=by_url) for image in result.images],
        output_format=result.parameters["format"],
        size=f"{width}x{height}",
        quality=quality_of(num_samples),
        usage=await _usage(context, result),
        safety_identifier=body.safety_identifier or body.user or None,
        job=result.id,
        num_samples=num_samples,
        stopped=result.stopped,
        confidence=result.confidence,
        model=result.model,
        judge=result.judge,
        warnings=[*result.warnings, *body.unused],
    )


def refusal_of(context: Context, request: Request, result: JobResult) -> BestOfNError | None:
    """Why there are no images, if there are none."""
    if result.status in ACTIVE:
        return WaitTimeout(
            f"the job is not done; it goes on at {context.absolute(request, f'/jobs/{result.id}')}. "
            "Fetch it there, or repeat the call with the same Idempotency-Key"
        )
    return failure_of(result)


async def _usage(context: Context, result: JobResult) -> TokenUsage | None:
    """The usage of a job; None once its model is not deployed any more."""
    asked = result.parameters
    with contextlib.suppress(BestOfNError):
        deployment = await context.deployed.choose(result.model.name, result.judge.name)
        tokenizer = deployment.model.tokenizer_sha256
        await context.counters.load(tokenizer)
        texts = (asked["prompt"], asked["negative_prompt"])
        tokens = sum(context.counters.count(tokenizer, text.lower().strip()) for text in texts if text)
        candidates = 0 if result.usage is None else result.usage.candidates
        return TokenUsage.of(tokens, candidates, asked["width"], asked["height"])
    return None


async def _image(
    request: Request, context: Context, result: JobResult, image: ImageOut, *, by_url: bool
) -> GeneratedImage:
    assert image.seed is not None
    made = GeneratedImage(seed=image.seed, candidate=image.candidate, score=image.verdict.p_yes, verdict=image.verdict)
    if by_url:
        made.url = context.absolute(request, (image.url or "").removeprefix(context.base))
    else:
        made.b64_json = base64.b64encode(await context.queue.image(result.id, image.candidate)).decode()
    return made


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
        context: state of this process.
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
    source = follow_entries(context.queue, spec.id)
    async with aclosing(paced(source, POSITION_SECONDS, context.stopping)) as stored:
        async for entries in stored:
            for part in parts(entries or ()):
                due = 0  # thresholds that this part reached
                async with context.turns.of(caller):
                    for entry in part if left else ():
                        await _follow(context, spec, translator, Event.read(*entry))
                        while left and translator.judged >= left[0]:
                            due = left.pop(0)
                if not due or translator.best is None:
                    continue
                shown = await _shown(context, spec, translator.best)
                if shown is not None and (translator.best.index, shown[1]) != last:
                    last = (translator.best.index, shown[1])
                    yield _partial(spec, translator.best, sent, translator.judged, shown)
                    sent += 1


async def _follow(context: Context, spec: JobSpec, translator: EventTranslator, event: Event) -> None:
    """Note one event of the job."""
    if translator.missed(event):
        await catch_up(translator, (await context.queue.record(spec.id)).outcomes)
    for _ in translator.translate(event):
        pass


async def _shown(context: Context, spec: JobSpec, candidate: Candidate) -> tuple[bytes, ImageFormat] | None:
    """File bytes and format of a candidate's image, or of its thumbnail until its heat is done; None: neither."""
    with contextlib.suppress(ImageNotFound):
        return await context.queue.image(spec.id, candidate.index), spec.format
    with contextlib.suppress(ImageNotFound):
        return await context.queue.thumbnail(spec.id, candidate.index), "webp"
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
