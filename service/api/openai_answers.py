"""Answers of /v1/images/generations: a job's winners with their usage in OpenAI's shape, or why there are none."""

import base64
import contextlib
import time

from fastapi import Request

from bestofn.service.api.dependencies import Context
from bestofn.service.api.responses import failure_of
from bestofn.service.core.errors import BestOfNError, WaitTimeout
from bestofn.service.core.jobs import ACTIVE
from bestofn.service.core.openai_schemas import (
    GeneratedImage,
    ImagesRequest,
    ImagesResponse,
    TokenUsage,
    quality_of,
)
from bestofn.service.core.schemas import ImageOut, JobResult


async def images_answer(
    context: Context, request: Request, body: ImagesRequest, result: JobResult, *, by_url: bool | None = None
) -> ImagesResponse:
    """The answer about a job that has succeeded.

    Args:
        context: of this process.
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
