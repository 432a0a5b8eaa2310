"""Warnings about a request that is accepted: options that have no effect here, or were measured on another model."""

import re

from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Plan
from bestofn.service.core.request_checks import confidence_ceiling
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.workers import JudgeInfo, ModelInfo


def request_warnings(request: GenerateRequest, model: ModelInfo, judge: JudgeInfo, chosen: Plan | None) -> list[str]:
    """All warnings for the job's caller.

    Args:
        request: the request, with the options that an effort or a budget chose.
        model: the model that serves it.
        judge: the judge that serves it.
        chosen: the options of an effort or a budget; None if the request names neither.
    """
    warnings = []
    known = None if model.known_words is None else set(model.known_words)
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        unknown = [word for word in words if known is not None and word not in known]
        if unknown:
            listed = ", ".join(unknown[:12]) + (", ..." if len(unknown) > 12 else "")
            warnings.append(f"{field}: {model.revision.name} does not know the words {listed}; it cannot draw them")
    most, stop = confidence_ceiling(request, judge), request.stop
    if stop is not None and most is not None and stop.chosen("confidence") and stop.confidence >= most[0]:
        warnings.append(
            f"stop.confidence {stop.confidence:g} is never reached: calibrated, judge {most[1]} gives less than "
            f"{most[0]:.3f} to every image"
        )
    revision, second = judge.revision.revision, judge.second
    if request.rule is Rule.LOWER_BOUND and second is not None and second.revision.revision == revision:
        warnings.append(f"both judges are of revision {revision}: rule lower_bound then ranks as margin does")
    if chosen is not None and model.revision.name != "shapes":
        warnings.append(f"the options were chosen from measurements on shapes; {model.revision.name} may differ")
    return warnings


def unread_negative(request: GenerateRequest, guidance: float, model: ModelInfo) -> str | None:
    """The warning of a negative prompt that is not read; None if it is read, or left out."""
    if not request.negative_prompt or (guidance > 1 and not model.guidance_embeds):
        return None
    why = (
        f"{model.revision.name} reads none" if model.guidance_embeds else f"guidance_scale {guidance:g} is not above 1"
    )
    return f"negative_prompt has no effect: {why}"
