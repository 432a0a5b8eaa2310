"""Planning of POST /rank: the JobSpec that judges images which a caller sent."""

from collections.abc import Sequence

from bestofn.judge.verdict import Rule
from bestofn.service.core.deployments import Deployment, no_second_judge
from bestofn.service.core.heat_schedule import heat_size
from bestofn.service.core.jobs import JobSpec, SentImage
from bestofn.service.core.planning import check_finals, check_work
from bestofn.service.core.rank_request import RankOptions
from bestofn.service.core.request_checks import TokenCounter, check_at_most, check_prompt, check_readable
from bestofn.service.core.settings import Settings


def rank_spec(
    request: RankOptions,
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
    judge, second = deployment.judge, deployment.judge.second
    bound = request.rule is Rule.LOWER_BOUND
    if bound and second is None:
        raise no_second_judge(deployment)
    check_prompt(request.prompt)
    check_finals(request.finals, deployment)
    check_at_most("images", len(images), settings.max_samples, "the limit of BESTOFN_MAX_SAMPLES")
    check_at_most("top_k", request.top_k, len(images), "the number of images")
    for one in deployment.judges[: 1 + bound]:
        check_readable(request.prompt, one, count_tokens)
    spec = JobSpec(
        id=job_id,
        prompt=request.prompt,
        num_samples=len(images),
        top_k=request.top_k,
        seed=0,
        width=0,
        height=0,
        num_inference_steps=0,
        guidance_scale=0.0,
        rule=request.rule,
        priority=request.priority,
        heat_size=heat_size(len(images), deployment.capacities),
        calibration=judge.calibration if bound else None,
        second_calibration=None if second is None or not bound else second.calibration,
        finals=request.finals,
        deadline_seconds=request.deadline_seconds,
        thumbnails=request.thumbnails,
        model=deployment.model.revision,
        judge=judge.revision,
        second_judge=None if second is None else second.revision,
        sent=tuple(images),
    )
    check_work(spec, deployment, settings, "images", "in several requests")
    return spec
