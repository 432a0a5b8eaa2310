"""From a request and the live workers' cards to a job with every default filled in, or a refusal that helps."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from bestofn.judge.verdict import Rule
from bestofn.service.core.budget import Budget, Prices, best, frontier, plan, planned
from bestofn.service.core.errors import InvalidRequest, Unavailable
from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE
from bestofn.service.core.jobs import Draft, ImageFormat, JobSpec, Plan, Revisions, Stop
from bestofn.service.core.scheduling import heat_size
from bestofn.service.core.schemas import MAX_SEED, GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo, ModelInfo, WorkerInfo

PLANNED = ("num_samples", "draft", "stop")  # fields that an effort or a budget chooses
NO_WORKER_RETRY_SECONDS = 5.0  # a worker that starts now needs at least this long to load its weights

# (tokenizer's hash, text) -> number of tokens, control tokens included
TokenCounter = Callable[[str, str], int]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model and a judge, with a second one or without, that one worker holds together, with the capacities of the
    live workers that hold them."""

    model: ModelInfo
    judge: JudgeInfo
    capacities: tuple[int, ...]
    tflops_per_second: float = 0.0  # of all these workers, as far as it is known
    pairwise_judge: str | None = None  # the pairwise judge that a live worker asks, the one that started last first


def deployments_of(workers: Iterable[WorkerInfo]) -> list[Deployment]:
    """The pairs among workers' cards, the one whose worker started last first: during an upgrade the new revision."""
    groups: dict[Revisions, list[WorkerInfo]] = {}
    for info in sorted(workers, key=lambda info: (-info.started_at, info.worker)):
        groups.setdefault(info.revisions, []).append(info)
    return [
        Deployment(
            held[0].model,
            held[0].judge,
            tuple(info.capacity for info in held),
            sum(info.tflops_per_second or 0.0 for info in held),
            next((info.pairwise_judge for info in held if info.pairwise_judge is not None), None),
        )
        for held in groups.values()
    ]


def choose_deployment(
    live: Sequence[Deployment],
    announced: Sequence[Deployment],
    model: str | None,
    judge: str | None,
    rule: Rule = Rule.MARGIN,
    *,
    finals: bool = False,
) -> Deployment:
    """The pair that serves a request that names `model` and `judge`, or leaves them out where there is one name only.

    Args:
        live: pairs of workers that are warm now.
        announced: pairs of all workers that ever were: a job for one of those waits until such a worker is back.
        model: a name, or None.
        judge: a name, or None.
        rule: the lower bound is for workers with a second judge.
        finals: such workers go first as have a pairwise judge.

    Raises:
        Unavailable: there was never a worker.
        InvalidRequest: a name that is not deployed, or none where one has to be chosen, or no second judge.
    """
    known = [*live, *announced]
    if not known:
        raise Unavailable(
            "no worker has been ready yet; start one with `bestofn worker`, or wait until it has loaded its weights",
            retry_after=NO_WORKER_RETRY_SECONDS,
        )
    current = live or announced
    model = _choose("model", model, [p.model.revision.name for p in current], [p.model.revision.name for p in known])
    current, known = ([p for p in pairs if p.model.revision.name == model] for pairs in (current, known))
    judge = _choose(
        "judge", judge, [p.judge.revision.name for p in current or known], [p.judge.revision.name for p in known]
    )
    named = [pair for pair in known if pair.judge.revision.name == judge]
    if finals:
        named = [pair for pair in named if pair.pairwise_judge is not None] or named
    if rule is not Rule.LOWER_BOUND:
        return named[0]
    pair = next((pair for pair in current or known if pair in named and pair.judge.second is not None), None)
    return pair or _no_second(named[0], " beside a judge for finals" if finals else "")


def _no_second(pair: Deployment, where: str = "") -> NoReturn:
    raise InvalidRequest(
        f"rule lower_bound needs a second judge, and no worker of model {pair.model.revision.name} with judge "
        f"{pair.judge.revision.name} has one{where}: start workers with BESTOFN_SECOND_JUDGE, or ask for rule margin",
        field="rule",
    )


def _choose(field: str, name: str | None, current: Sequence[str], known: Sequence[str]) -> str:
    listed = ", ".join(sorted(set(current)))
    if name is None:
        if len(set(current)) > 1:
            raise InvalidRequest(f"{field} has to be named, since several are deployed: {listed}", field=field)
        return current[0]
    if name not in known:
        beside = " beside this model" if field == "judge" else ""
        raise InvalidRequest(f"{field} {name[:100]!a} is not deployed{beside}; choose from {listed}", field=field)
    return name


def job_spec(
    request: GenerateRequest,
    pair: Deployment,
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
        pair: what serves it, of `choose_deployment`.
        settings: the server's limits.
        job_id: a new job's id.
        random_seed: taken if the request names no seed; at most 2**53.
        count_tokens: counts with the checkpoint's own tokenizer.
        image_format: overrules the request's, for callers whose Accept header chose.

    Raises:
        InvalidRequest: with the field at fault, its limit and what to change.
    """
    info, second = pair.model, pair.judge.second
    bound = request.rule is Rule.LOWER_BOUND
    if bound and second is None:
        _no_second(pair)
    _check_text("prompt", request.prompt)
    _check_text("negative_prompt", request.negative_prompt)
    if not request.prompt.strip():
        raise InvalidRequest("prompt is blank; say what the picture should show", field="prompt")
    steps = info.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps
    _at_most("num_inference_steps", steps, settings.max_steps, "the limit of BESTOFN_MAX_STEPS")
    guidance = info.guidance_scale if request.guidance_scale is None else request.guidance_scale
    _at_most("guidance_scale", guidance, settings.max_guidance, "the limit of BESTOFN_MAX_GUIDANCE")
    width = _size("width", request.width, info.width, info, settings)
    height = _size("height", request.height, info.height, info, settings)
    depth = _depth("depth", request.depth, info)
    prices = _prices(pair, width, height, steps, guidance, depth)
    if bound:
        prices = prices.model_copy(update={"verdict": prices.verdict + _second_verdict(pair)})
    chosen = _chosen(request, prices, pair, settings)
    if chosen is not None:
        request = request.model_copy(update={name: getattr(chosen, name) for name in PLANNED})
    if request.finals is not None and pair.pairwise_judge is None:
        raise InvalidRequest(
            f"finals need a pairwise judge, and no live worker of {info.revision.name} has one: start workers with "
            "BESTOFN_PAIRWISE_JUDGE, or leave finals out",
            field="finals",
        )
    _at_most("num_samples", request.num_samples, settings.max_samples, "the limit of BESTOFN_MAX_SAMPLES")
    _at_most("top_k", request.top_k, request.num_samples, "num_samples")
    N = request.num_samples
    seed = random_seed if request.seed is None else request.seed
    if seed + N > MAX_SEED:
        raise InvalidRequest(
            f"seed + num_samples must not pass 2**63, so that every candidate has a seed; "
            f"the greatest seed for {N} candidates is {MAX_SEED - N}",
            field="seed",
        )
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        tokens = count_tokens(info.tokenizer_sha256, text.lower().strip()) if text else 0
        if tokens > info.token_limit:
            raise InvalidRequest(
                f"{field} has {tokens} tokens, but {info.revision.name} reads {info.token_limit}; shorten it by "
                f"{tokens - info.token_limit} (about {round(0.75 * (tokens - info.token_limit)) or 1} words)",
                field=field,
            )
    draft = _draft(request, steps, depth, info)
    spec = JobSpec(
        id=job_id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_samples=N,
        top_k=request.top_k,
        seed=seed,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        depth=depth,
        layers=info.layers(depth),
        rule=request.rule,
        format=image_format or request.format,
        priority=request.priority,
        # Drafts compete within a heat and `stop` asks after each, so that its size is part of the result.
        heat_size=(
            heat_size(N, pair.capacities)
            if request.draft is None and request.stop is None
            else min(N, DEFAULT_HEAT_SIZE)
        ),
        draft=draft,
        draft_layers=None if draft is None else info.layers(draft.depth or depth),
        stop=_stop(request, pair.judge),
        calibration=None if request.stop is None and not bound else pair.judge.calibration,
        second_calibration=None if second is None or not bound else second.calibration,
        finals=request.finals,
        deadline_seconds=request.deadline_seconds,
        thumbnails=request.thumbnails,
        embed_prompt=request.embed_prompt,
        plan=chosen,
        model=info.revision,
        judge=pair.judge.revision,
        second_judge=None if second is None else second.revision,
        warnings=(
            *_unknown_words(request, info),
            *_out_of_reach(request, pair.judge),
            *(_same_twice(pair.judge) if bound else ()),
            *_measured_elsewhere(chosen, info),
        ),
    )
    _at_most(
        "top_k", spec.top_k, spec.schedule.num_promoted, "the candidates that are solved in full; raise draft.keep"
    )
    work = tflops(spec, pair)
    if settings.max_tflops is not None and work > settings.max_tflops:
        raise InvalidRequest(
            f"the job would take about {work:,.0f} TFLOP, but this server takes jobs of at most "
            f"{settings.max_tflops:,.0f}; ask for at most {int(N * settings.max_tflops / work)} candidates, "
            "fewer steps or a smaller picture",
            field="num_samples",
        )
    return spec


def tflops(spec: JobSpec, pair: Deployment) -> float:
    """Estimated work of a job in TFLOP; linear attention makes a forward proportional to the number of pixels."""
    asked = spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale
    prices = _prices(pair, *asked, spec.depth)
    steps = spec.schedule.num_promoted * spec.num_inference_steps * prices.step
    if spec.draft is not None:
        draft = _prices(pair, *asked, spec.draft.depth or spec.depth)
        steps += spec.num_samples * spec.draft.num_inference_steps * draft.step
    verdicts = spec.schedule.num_promoted + (0 if spec.draft is None else spec.num_samples)
    seconds = spec.schedule.num_promoted * _second_verdict(pair) if spec.rule is Rule.LOWER_BOUND else 0.0
    return steps + verdicts * prices.verdict + seconds


def _second_verdict(pair: Deployment) -> float:
    return 0.0 if pair.judge.second is None else pair.judge.second.tflops_per_forward


def _prices(pair: Deployment, width: int, height: int, steps: int, guidance: float, depth: int | None) -> Prices:
    info = pair.model
    spared = 0 if depth is None or info.depth is None else info.depth - depth
    area = width * height / (info.width * info.height)
    guided = 2 if guidance > 1 else 1
    return Prices(
        step=area * guided * (info.tflops_per_forward - spared * info.tflops_per_layer),
        verdict=area * info.tflops_per_decode + pair.judge.tflops_per_forward,
        steps=steps,
    )


def _chosen(request: GenerateRequest, prices: Prices, pair: Deployment, settings: Settings) -> Plan | None:
    """The options that an effort or a budget stands for."""
    if request.effort is None and request.budget is None:
        return None
    field = "effort" if request.effort is not None else "budget"
    twice = [name for name in PLANNED if name in request.model_fields_set]
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
    budget = _tflops_of(request.budget, pair)
    plans = planned(prices, settings.max_samples)
    if (within := best(plans, budget)) is None:
        raise InvalidRequest(
            f"budget pays for {budget:.3g} TFLOP, but one candidate takes about {plans[0].expected_tflops:.3g} "
            "with these steps and this size",
            field="budget",
        )
    return within


def _tflops_of(budget: Budget | None, pair: Deployment) -> float:
    if budget is None or (budget.tflops is None) is (budget.seconds is None):
        raise InvalidRequest('budget is {"tflops": X} or {"seconds": X}', field="budget")
    if budget.tflops is not None:
        return budget.tflops
    if not pair.tflops_per_second:
        raise InvalidRequest(
            'no worker has worked yet, so that none\'s speed is known; say {"tflops": X}', field="budget.seconds"
        )
    return float(budget.seconds or 0.0) * pair.tflops_per_second


def _measured_elsewhere(chosen: Plan | None, info: ModelInfo) -> Iterable[str]:
    if chosen is not None and info.revision.name != "shapes":
        yield f"the options were chosen by what was measured on shapes; {info.revision.name} may differ"


def _depth(field: str, asked: int | None, info: ModelInfo) -> int | None:
    """The depth that is meant; None for all blocks."""
    name, most = info.revision.name, info.depth
    if asked is None or asked == most:
        return None
    if most is None:
        raise InvalidRequest(f"{field}: the workers of {name} do not know of depths; restart them", field=field)
    _at_most(field, asked, most, f"the blocks of {name}")
    if info.layer_order is None:
        raise InvalidRequest(
            f"{field}: {name} draws with all its {most} blocks, since nobody has measured which matter most: "
            "`bestofn models importance` does, and workers read it when they start",
            field=field,
        )
    return asked


def _draft(request: GenerateRequest, steps: int, depth: int | None, info: ModelInfo) -> Draft | None:
    """The draft that is meant, which is cheaper than a full solution: of fewer steps or of fewer blocks."""
    if request.draft is None:
        return None
    asked = _depth("draft.depth", request.draft.depth, info)
    if request.draft.depth is not None and depth is not None:
        _at_most("draft.depth", request.draft.depth, depth, "the depth of a full solution")
    shallower = asked is not None and asked != depth
    if request.draft.num_inference_steps > steps - (not shallower):
        raise InvalidRequest(
            f"draft.num_inference_steps must be {'at most' if shallower else 'fewer than'} the {steps} of a full "
            f"solution, got {request.draft.num_inference_steps}",
            field="draft.num_inference_steps",
        )
    return request.draft.model_copy(update={"depth": asked if shallower else None})


def _stop(request: GenerateRequest, judge: JudgeInfo) -> Stop | None:
    """When to stop; a confidence that was left out is meant of the most that those who judge can have."""
    most = _ceiling(request, judge)
    if request.stop is None or most is None or "confidence" in request.stop.model_fields_set:
        return request.stop
    return request.stop.model_copy(update={"confidence": request.stop.confidence * most[0]})


def _ceiling(request: GenerateRequest, judge: JudgeInfo) -> tuple[float, str] | None:
    """What no leader's probability reaches, and the name of the judge to whom that is due; None if not calibrated."""
    judges = [judge, *([judge.second] if judge.second and request.rule is Rule.LOWER_BOUND else [])]
    return min(((one.calibration.ceiling, one.revision.name) for one in judges if one.calibration), default=None)


def _out_of_reach(request: GenerateRequest, judge: JudgeInfo) -> Iterable[str]:
    most = _ceiling(request, judge)
    if request.stop is None or most is None or "confidence" not in request.stop.model_fields_set:
        return
    if request.stop.confidence >= most[0]:
        yield (
            f"stop.confidence {request.stop.confidence:g} is never reached: calibrated, judge {most[1]} "
            f"promises less than {most[0]:.3f}, whatever it sees"
        )


def _same_twice(judge: JudgeInfo) -> Iterable[str]:
    if judge.second is not None and judge.second.revision.revision == judge.revision.revision:
        yield f"both judges are of revision {judge.revision.revision}: rule lower_bound then ranks as margin does"


def _check_text(field: str, text: str) -> None:
    for position, character in enumerate(text):
        if character == "\0":
            raise InvalidRequest(f"{field} holds a NUL character at position {position}; remove it", field=field)
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{field} holds a lone surrogate at position {position}; remove it", field=field)


def _at_most(field: str, value: float, limit: float, what: str) -> None:
    if value > limit:
        raise InvalidRequest(f"{field} must be at most {limit} ({what}), got {str(value)[:20]}", field=field)


def _size(field: str, asked: int | None, default: int, info: ModelInfo, settings: Settings) -> int:
    value = default if asked is None else asked
    step, most = info.size_multiple, min(info.max_size, settings.max_size)
    if value % step or not step <= value <= most:
        near = min(max(step * ((value + step // 2) // step), step), most - most % step)
        raise InvalidRequest(
            f"{field} must be a multiple of {step} from {step} to {most - most % step} for {info.revision.name}, "
            f"got {str(value)[:20]}; the nearest is {near}",
            field=field,
        )
    return value


def _unknown_words(request: GenerateRequest, info: ModelInfo) -> Iterable[str]:
    if info.known_words is None:
        return
    known = set(info.known_words)
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        unknown = [word for word in words if word not in known]
        if unknown:
            listed = ", ".join(unknown[:12]) + (", ..." if len(unknown) > 12 else "")
            yield f"{field}: {info.revision.name} has never learned the words {listed}; it cannot draw what they mean"
