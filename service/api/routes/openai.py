"""The OpenAI shape: POST /v1/images/generations and GET /v1/models, so that its clients work unchanged."""

import base64
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import read_prefer
from bestofn.service.api.dependencies import Context, ContextDep
from bestofn.service.api.json_body import JsonRoute
from bestofn.service.api.problem_details import problem_of
from bestofn.service.api.responses import failure_of, location_of, result_of
from bestofn.service.api.submission import submit
from bestofn.service.api.wait import Ending, wait
from bestofn.service.core.errors import BestOfNError, InvalidRequest, ModelNotFound, WaitTimeout
from bestofn.service.core.jobs import ACTIVE
from bestofn.service.core.openai_schemas import GeneratedImage, ImagesRequest, ImagesResponse, ModelsOut, OpenAIModel
from bestofn.service.core.schemas import ImageOut, JobResult
from bestofn.service.core.workers import WorkerInfo

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_images = APIRouter(route_class=JsonRoute)


@_images.post(
    "/images/generations",
    response_model=ImagesResponse,
    summary="The best n of N candidates, in the shape of OpenAI's images API",
)
async def generate_images(
    request: Request,
    context: ContextDep,
    body: ImagesRequest,
    prefer: Annotated[str | None, Header(description="`wait=n` seconds, `cancel-on-disconnect`.")] = None,
    idempotency_key: Annotated[str | None, Header(description="The same key and body again: the same job.")] = None,
) -> Response:
    """Wait for the job's end; a job that takes longer gives 504 with its Location, and goes on.

    Errors have OpenAI's form. A repetition with the same `Idempotency-Key` joins the same job. Without a key it would
    start another job, so the answer asks clients not to retry.
    """
    wanted = body.generate_request(context.settings.max_samples)
    context.open_calls.enter(request.scope, "wait")
    try:
        job_id, created = await submit(context, wanted, caller=caller_of(request), key=idempotency_key)
    except InvalidRequest as error:
        error.field = _their_name(error.field, body)
        raise
    preference = read_prefer(prefer, context.settings.max_wait_seconds)
    seconds = preference.seconds or context.settings.max_wait_seconds
    ending = await wait(context, request, job_id, seconds)
    if ending is Ending.HUNG_UP and created and preference.cancel_on_disconnect:
        await context.queue.cancel(job_id)
    result = await result_of(context, job_id, limit=1, caller=caller_of(request))
    headers = {"Location": location_of(job_id)} | ({} if created else {"Idempotent-Replayed": "true"})
    refusal = _refusal(result, seconds)
    if refusal is not None:
        if isinstance(refusal, WaitTimeout):
            headers["x-should-retry"] = "false" if idempotency_key is None else "true"
        return problem_of(refusal, job=job_id, headers=headers)
    by_url = body.response_format == "url"
    response = ImagesResponse(
        created=int(time.time()),
        data=[await _image(request, context, result, image, by_url=by_url) for image in result.images],
        output_format=result.parameters["format"],
        size=f"{result.parameters['width']}x{result.parameters['height']}",
        job=job_id,
        num_samples=result.parameters["num_samples"],
        stopped=result.stopped,
        confidence=result.confidence,
        model=result.model,
        judge=result.judge,
        warnings=result.warnings,
    )
    headers["Cache-Control"] = "no-store"
    return Response(response.model_dump_json(exclude_none=True), 200, headers, "application/json")


router.include_router(_images)


@router.get("/models", summary="The models that requests can name")
async def list_models(context: ContextDep) -> ModelsOut:
    """Those of warm workers first, then those whose workers are away."""
    return ModelsOut(data=await _models(context))


@router.get("/models/{name:path}", summary="One of them")
async def read_model(context: ContextDep, name: str) -> OpenAIModel:
    """Names of models may hold slashes."""
    models = await _models(context)
    found = next((model for model in models if model.id == name), None)
    if found is None:
        listed = ", ".join(model.id for model in models) or "there is none yet"
        raise ModelNotFound(f"model {name[:100]!a} is not deployed; choose from {listed}", field="model")
    return found


def _their_name(field: str | None, body: ImagesRequest) -> str | None:
    """The field at fault as the caller wrote it: our `width` came out of a `size`."""
    theirs = {"width": "size", "height": "size", "top_k": "n", "format": "output_format"}
    return field if field is None or field in body.model_fields_set else theirs.get(field, field)


def _refusal(result: JobResult, seconds: float) -> BestOfNError | None:
    """Why there are no images, if there are none."""
    if result.status in ACTIVE:
        return WaitTimeout(
            f"the job was not done within {seconds:g} s; it goes on at {location_of(result.id)}. "
            "Fetch it there, or repeat the call with the same Idempotency-Key"
        )
    return failure_of(result)


async def _image(
    request: Request, context: Context, result: JobResult, image: ImageOut, *, by_url: bool
) -> GeneratedImage:
    made = GeneratedImage(seed=image.seed, candidate=image.candidate, score=image.verdict.p_yes, verdict=image.verdict)
    if by_url:
        made.url = f"{str(request.base_url).rstrip('/')}{image.url}"
    else:
        made.b64_json = base64.b64encode(await context.queue.image(result.id, image.candidate)).decode()
    return made


async def _models(context: Context) -> list[OpenAIModel]:
    return models_of(await context.queue.workers(), await context.queue.announced())


def models_of(live: Sequence[WorkerInfo], announced: Sequence[WorkerInfo]) -> list[OpenAIModel]:
    """One entry a name: of two revisions side by side, the one that a request gets, which came up last."""
    by_name: dict[str, list[WorkerInfo]] = {}
    for infos in (live, announced):
        for info in sorted(infos, key=lambda info: -info.started_at):
            by_name.setdefault(info.model.revision.name, []).append(info)
    return [
        _model(name, infos, sum(info.model.revision.name == name for info in live)) for name, infos in by_name.items()
    ]


def _model(name: str, infos: Sequence[WorkerInfo], workers: int) -> OpenAIModel:
    model = infos[0].model
    return OpenAIModel(
        id=name,
        created=int(infos[0].started_at),
        owned_by=name.partition("/")[0] if "/" in name else "bestofn",
        revision=model.revision.revision,
        judges=list(dict.fromkeys(info.judge.revision for info in infos if info.model.revision == model.revision)),
        width=model.width,
        height=model.height,
        max_size=model.max_size,
        num_inference_steps=model.num_inference_steps,
        guidance_scale=model.guidance_scale,
        depths=model.depths,
        workers=workers,
    )
