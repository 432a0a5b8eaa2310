"""Planning: validate a request, of drawing or of ranking, and build its JobSpec, every default filled in."""

from collections.abc import Sequence
from typing import Any

from bestofn.service.core.budget import Budget, Prices, best, frontier, plan, planned
from bestofn.service.core.deployments import Deployment, prices_of, tflops, work_text
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE, heat_size
from bestofn.service.core.jobs import Finals, ImageFormat, JobSpec, Plan, SentImage
from bestofn.service.core.rank_request import RankFields
from bestofn.service.core.request_checks import (
    TokenCounter,
    check_at_most,
    check_prompt,
    check_readable,
    check_seed,
    check_text,
    check_tokens,
    checked_depth,
    checked_draft,
    checked_guidance,
    checked_size,
    request_warnings,
    stop_of,
    unread_negative,
)
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo

PLANNED = ("num_samples", "draft", "stop")  # fields that an effort or a budget chooses


def job_spec(
    request: GenerateRequest,
    deployment: Deployment,
    settings: Settings,
    *,
    job_id: str,
    random_seed: int,
    count_tokens: TokenCounter,
    image_format: ImageFormat | None = None,
) -> JobSpec:
    """The job that a request asks for.

    Args:
        request: fields within the bounds of the schema.
        deployment: what serves it, of `choose_deployment`.
        settings: the server's limits.
        job_id: a new job's id.
        random_seed: taken if the request names no seed; at most 2**53.
        count_tokens: counts with the checkpoint's own tokenizer.
        image_format: overrules the request's, for callers whose Accept header chose.

    Raises:
        InvalidRequest: with the field at fault, its limit and what to change.
    """
    info, judges = deployment.model, deployment.deciding(request.rule)
    check_prompt(request.prompt)
    check_text("negative_prompt", request.negative_prompt)
    steps = info.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps
    check_at_most("num_inference_steps", steps, settings.max_steps, "the limit of BESTOFN_MAX_STEPS")
    guidance = checked_guidance(request.guidance_scale, info, settings)
    width = checked_size("width", request.width, info.width, info, settings)
    height = checked_size("height", request.height, info.height, info, settings)
    depth = checked_depth("depth", request.depth, info)
    prices = prices_of(deployment, width, height, steps, guidance, depth)
    for second in judges[1:]:
        prices = prices.model_copy(update={"verdict": prices.verdict + second.tflops_per_forward})
    chosen = _chosen(request, prices, deployment, settings)
    if chosen is not None:
        request = request.model_copy(update={name: getattr(chosen, name) for name in PLANNED})
    _check_finals(request.finals, deployment)
    check_at_most("num_samples", request.num_samples, settings.max_samples, "the limit of BESTOFN_MAX_SAMPLES")
    check_at_most("top_k", request.top_k, request.num_samples, "num_samples")
    N = request.num_samples
    seed = random_seed if request.seed is None else request.seed
    check_seed(seed, N)
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text:
            check_tokens(field, count_tokens(info.tokenizer_sha256, text.lower().strip()), info)
    for judge in judges:
        check_readable(request.prompt, judge, count_tokens)
    draft = checked_draft(request, steps, depth, info)
    unread = unread_negative(request, guidance, info)
    spec = JobSpec(
        id=job_id,
        negative_prompt="" if unread else request.negative_prompt,
        num_samples=N,
        top_k=request.top_k,
        seed=seed,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        depth=depth,
        layers=info.layers(depth),
        format=image_format or request.format,
        # Drafts compete within a heat and `stop` asks after each, so that its size is part of the result.
        heat_size=(
            heat_size(N, deployment.capacities)
            if request.draft is None and request.stop is None
            else min(N, DEFAULT_HEAT_SIZE)
        ),
        draft=draft,
        draft_layers=None if draft is None else info.layers(draft.depth or depth),
        stop=stop_of(request, judges),
        calibration=None if request.stop is None and not judges[1:] else deployment.judge.calibration,
        embed_prompt=request.embed_prompt,
        plan=chosen,
        warnings=(*([unread] if unread else []), *request_warnings(request, info, judges, chosen)),
        **_fields_of_all(request, deployment, judges),
    )
    check_at_most(
        "top_k", spec.top_k, spec.schedule.num_promoted, "the candidates that are solved in full; raise draft.keep"
    )
    _check_work(spec, deployment, settings, "num_samples", "fewer steps or a smaller image")
    return spec


def rank_spec(
    request: RankFields,
    images: Sequence[SentImage],
    deployment: Deployment,
    settings: Settings,
    *,
    job_id: str,
    count_tokens: TokenCounter,
) -> JobSpec:
    """The job that judges these images, one candidate an image. Its fields of drawing are zero.

    Args:
        request: fields within the bounds of the schema.
        images: the sent images, at least two.
        deployment: what serves the request.
        settings: the server's limits.
        job_id: a new job's id.
        count_tokens: counts with the judge's own tokenizer.

    Raises:
        InvalidRequest: with the field at fault, its limit and what to change.
    """
    judges = deployment.deciding(request.rule)
    check_prompt(request.prompt)
    _check_finals(request.finals, deployment)
    check_at_most("images", len(images), settings.max_samples, "the limit of BESTOFN_MAX_SAMPLES")
    check_at_most("top_k", request.top_k, len(images), "the number of images")
    for judge in judges:
        check_readable(request.prompt, judge, count_tokens)
    spec = JobSpec(
        id=job_id,
        num_samples=len(images),
        top_k=request.top_k,
        seed=0,
        width=0,
        height=0,
        num_inference_steps=0,
        guidance_scale=0.0,
        heat_size=heat_size(len(images), deployment.capacities),
        calibration=deployment.judge.calibration if judges[1:] else None,
        sent=tuple(images),
        **_fields_of_all(request, deployment, judges),
    )
    _check_work(spec, deployment, settings, "images", "in several requests")
    return spec


def _fields_of_all(
    request: GenerateRequest | RankFields, deployment: Deployment, judges: Sequence[JudgeInfo]
) -> dict[str, Any]:
    """Fields of a job that are the same for either kind of request. `judges` are the one or two that decide."""
    names = ("prompt", "rule", "priority", "finals", "deadline_seconds", "thumbnails")
    judge, second = deployment.judge.revisions
    return {name: getattr(request, name) for name in names} | {
        "model": deployment.model.revision,
        "judge": judge,
        "second_judge": second,
        "second_calibration": judges[1].calibration if judges[1:] else None,
    }


def _check_finals(finals: Finals | None, deployment: Deployment) -> None:
    """Raise InvalidRequest for finals where no worker has a pairwise judge."""
    if finals is not None and deployment.pairwise_judge is None:
        raise InvalidRequest(
            f"finals need a pairwise judge, and no live worker of {deployment.model.revision.name} has one: start "
            "workers with BESTOFN_PAIRWISE_JUDGE, or leave finals out",
            field="finals",
        )


def _check_work(spec: JobSpec, deployment: Deployment, settings: Settings, field: str, fix: str) -> None:
    """Raise InvalidRequest for a job of more work than BESTOFN_MAX_TFLOPS, naming `field` and another `fix`."""
    work, most = tflops(spec, deployment), settings.max_tflops
    if most is not None and work > most:
        fits = int(spec.num_samples * most / work)
        raise InvalidRequest(
            f"the job would take about {work_text(work)} TFLOP, but this server takes jobs of at most "
            f"{work_text(most)}; ask for {f'at most {fits} candidates, {fix}' if fits else fix}",
            field=field,
        )


def _chosen(request: GenerateRequest, prices: Prices, deployment: Deployment, settings: Settings) -> Plan | None:
    """The options of an effort or a budget; None if the request names neither."""
    if request.effort is None and request.budget is None:
        return None
    field = "effort" if request.effort is not None else "budget"
    twice = [name for name in PLANNED if request.chosen(name)]
    if request.effort is not None and request.budget is not None:
        raise InvalidRequest("effort and budget both choose the options; leave one out", field="budget")
    if twice:
        raise InvalidRequest(f"{field} chooses {' and '.join(twice)}; leave one of them out", field=field)
    if request.effort is not None:
        chosen = plan(frontier().strategies[frontier().efforts[request.effort]], prices)
        if chosen is None:
            raise InvalidRequest(
                f"effort {request.effort} drafts, for which {prices.steps} steps are too few; ask for num_samples",
                field="effort",
            )
        return chosen
    budget = _tflops_of(request.budget, deployment)
    plans = planned(prices, settings.max_samples)
    if (within := best(plans, budget)) is None:
        raise InvalidRequest(
            f"budget pays for {budget:.3g} TFLOP, but one candidate takes about {plans[0].expected_tflops:.3g} "
            "with these steps and this size",
            field="budget",
        )
    return within


def _tflops_of(budget: Budget | None, deployment: Deployment) -> float:
    if budget is None or (budget.tflops is None) is (budget.seconds is None):
        raise InvalidRequest('budget is {"tflops": X} or {"seconds": X}', field="budget")
    if budget.tflops is not None:
        return budget.tflops
    if not deployment.tflops_per_second:
        raise InvalidRequest(
            'budget.seconds needs a known speed, and no worker has finished a heat yet; use {"tflops": X}',
            field="budget.seconds",
        )
    return float(budget.seconds or 0.0) * deployment.tflops_per_second
