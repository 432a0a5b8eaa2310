"""The OpenAI shape: POST /v1/images/generations and GET /v1/models, so that its clients work unchanged."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import read_prefer
from bestofn.service.api.dependencies import Context, ContextDep
from bestofn.service.api.openai_answers import image_events, images_answer, refusal_of
from bestofn.service.api.problem_details import problem_of
from bestofn.service.api.request_bodies import JsonRoute
from bestofn.service.api.responses import Ending, result_of, wait
from bestofn.service.api.retried_calls import HEADER, Call
from bestofn.service.api.routes.events import stream_response
from bestofn.service.api.submission import fingerprint_of, submit
from bestofn.service.core.errors import InvalidRequest, ModelNotFound, WaitTimeout
from bestofn.service.core.openai_schemas import ImagesRequest, ImagesResponse, ModelsOut, OpenAIModel
from bestofn.service.core.workers import WorkerInfo

router = APIRouter(tags=["OpenAI"])
_images = APIRouter(route_class=JsonRoute)


@_images.post(
    "/v1/images/generations",
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
    """Wait for the job's end, as long as the caller does. With `Prefer: wait=n`, 504 with the job's Location after n s.

    Errors have OpenAI's form. A repetition with the same `Idempotency-Key` joins the same job, which goes on without
    callers. Without a key a caller that hangs up cancels its job, unless an OpenAI client's own retry follows.

    With `stream: true` the answer is a stream of events. `image_generation.partial_image` has the best candidate so
    far, up to `partial_images` times. `image_generation.completed` or `error` comes last.
    """
    wanted = body.generate_request(context.settings.max_samples, context.settings.model_aliases)
    context.open_calls.enter(request.scope, "stream" if body.stream else "wait")
    caller, preference = caller_of(request), read_prefer(prefer, math.inf)
    call = Call.of(caller, fingerprint_of(wanted, format=wanted.format), request.headers.get(HEADER))
    joined = await call.join(context) if idempotency_key is None else None
    try:
        job_id, created = (
            (joined, False) if joined else await submit(context, wanted, caller=caller, key=idempotency_key)
        )
    except InvalidRequest as error:
        raise body.in_their_words(error) from None
    headers = {"Location": f"{context.base}/jobs/{job_id}"} | ({} if created else {"Idempotent-Replayed": "true"})
    if body.stream:
        leave = call if idempotency_key is None or (created and preference.cancel_on_disconnect) else None
        return stream_response(image_events(context, request, body, job_id, leave), headers)
    ending = await wait(context, request, job_id, preference.seconds or math.inf)
    if ending is Ending.HUNG_UP and created and preference.cancel_on_disconnect:
        await context.queue.cancel(job_id)
    # A client that retries finds another server where this one stops.
    stops = call.retries is not None and ending is Ending.STOPS
    if idempotency_key is None and (ending is Ending.HUNG_UP or stops):
        await call.leave(context, job_id)
    result = await result_of(context, job_id, limit=1, caller=caller)
    refusal = refusal_of(context, request, result)
    if refusal is not None:
        if isinstance(refusal, WaitTimeout):
            again = idempotency_key is not None or stops
            headers |= {"Location": context.absolute(request, f"/jobs/{job_id}"), "x-should-retry": str(again).lower()}
        return problem_of(refusal, job=job_id, headers=headers)
    headers["Cache-Control"] = "no-store"
    answer = await images_answer(context, request, body, result)
    return Response(answer.model_dump_json(exclude_none=True), 200, headers, "application/json")


router.include_router(_images)


@router.get("/v1/models/", include_in_schema=False)
@router.get("/v1/models", summary="The models that requests can name")
async def list_models(context: ContextDep) -> ModelsOut:
    """Those of warm workers first, then those whose workers are away."""
    return ModelsOut(data=await _models(context))


@router.get("/v1/models/{name:path}", summary="One of them")
async def read_model(context: ContextDep, name: str) -> OpenAIModel:
    """Names of models may hold slashes."""
    models = await _models(context)
    found = next((model for model in models if model.id == name), None)
    if found is None:
        listed = ", ".join(model.id for model in models) or "there is none yet"
        raise ModelNotFound(f"model {name[:100]!a} is not deployed; choose from {listed}", field="model")
    return found


async def _models(context: Context) -> list[OpenAIModel]:
    workers, announced = await context.queue.workers(), await context.queue.announced()
    return models_of(workers, announced, context.settings.model_aliases)


def models_of(
    live: Sequence[WorkerInfo], announced: Sequence[WorkerInfo], aliases: Mapping[str, str] | None = None
) -> list[OpenAIModel]:
    """One entry a name: of two revisions side by side, the one that a request gets, which came up last.

    `aliases` are further names, each with the name of the model that it means.
    """
    by_name: dict[str, list[WorkerInfo]] = {}
    for infos in (live, announced):
        for info in sorted(infos, key=lambda info: -info.started_at):
            by_name.setdefault(info.model.revision.name, []).append(info)
    models = {
        name: _model(name, infos, sum(info.model.revision.name == name for info in live))
        for name, infos in by_name.items()
    }
    named = {
        alias: models[name].model_copy(update={"id": alias})
        for alias, name in (aliases or {}).items()
        if name in models
    }
    return list((models | named).values())


def _model(name: str, infos: Sequence[WorkerInfo], workers: int) -> OpenAIModel:
    model = infos[0].model
    named = {
        "id": name,
        "created": int(infos[0].started_at),
        "owned_by": name.partition("/")[0] if "/" in name else "bestofn",
        "revision": model.revision.revision,
        "judges": list(dict.fromkeys(info.judge.revision for info in infos if info.model.revision == model.revision)),
        "depths": model.depths,
        "workers": workers,
    }
    return OpenAIModel.model_validate(model.model_dump() | named)
