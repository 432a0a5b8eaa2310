"""Estimated work of a job in TFLOP, from the figures that workers announce."""

from bestofn.judge.verdict import Rule
from bestofn.service.core.budget import Prices
from bestofn.service.core.deployments import Deployment
from bestofn.service.core.jobs import JobSpec


def tflops(spec: JobSpec, deployment: Deployment) -> float:
    """Estimated work of a job in TFLOP; linear attention makes a forward proportional to the number of pixels."""
    if spec.sent:
        second = second_verdict_tflops(deployment) if spec.rule is Rule.LOWER_BOUND else 0.0
        return spec.num_samples * (deployment.judge.tflops_per_forward + second)
    asked = spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale
    prices = prices_of(deployment, *asked, spec.depth)
    steps = spec.schedule.num_promoted * spec.num_inference_steps * prices.step
    if spec.draft is not None:
        draft = prices_of(deployment, *asked, spec.draft.depth or spec.depth)
        steps += spec.num_samples * spec.draft.num_inference_steps * draft.step
    verdicts = spec.schedule.num_promoted + (0 if spec.draft is None else spec.num_samples)
    seconds = spec.schedule.num_promoted * second_verdict_tflops(deployment) if spec.rule is Rule.LOWER_BOUND else 0.0
    return steps + verdicts * prices.verdict + seconds


def second_verdict_tflops(deployment: Deployment) -> float:
    """TFLOP of the second judge's verdict on one image; 0 without a second judge."""
    return 0.0 if deployment.judge.second is None else deployment.judge.second.tflops_per_forward


def prices_of(
    deployment: Deployment, width: int, height: int, steps: int, guidance: float, depth: int | None
) -> Prices:
    """TFLOP of a denoising step and of a verdict for images of this size, with this guidance and depth."""
    info = deployment.model
    spared = 0 if depth is None or info.depth is None else info.depth - depth
    area = width * height / (info.width * info.height)
    guided = 2 if guidance > 1 and not info.guidance_embeds else 1
    return Prices(
        step=area * guided * (info.tflops_per_forward - spared * info.tflops_per_layer),
        verdict=area * info.tflops_per_decode + deployment.judge.tflops_per_forward,
        steps=steps,
    )
