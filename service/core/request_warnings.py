"""Warnings about a request that is accepted: options that have no effect here, or were measured on another model."""

import re
from collections.abc import Iterable

from bestofn.judge.verdict import Rule
from bestofn.service.core.jobs import Plan
from bestofn.service.core.request_checks import confidence_ceiling
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.workers import JudgeInfo, ModelInfo


def request_warnings(
    request: GenerateRequest, model: ModelInfo, judge: JudgeInfo, chosen: Plan | None
) -> tuple[str, ...]:
    """All warnings for the job's caller.

    Args:
        request: the request, with the options that an effort or a budget chose.
        model: the model that serves it.
        judge: the judge that serves it.
        chosen: the options of an effort or a budget; None if the request names neither.
    """
    return (
        *_unknown_words(request, model),
        *_out_of_reach(request, judge),
        *(_same_twice(judge) if request.rule is Rule.LOWER_BOUND else ()),
        *_measured_elsewhere(chosen, model),
    )


def unread_negative(request: GenerateRequest, guidance: float, model: ModelInfo) -> str | None:
    """The warning of a negative prompt that is not read; None if it is read, or left out."""
    if not request.negative_prompt or (guidance > 1 and not model.guidance_embeds):
        return None
    why = (
        f"{model.revision.name} reads none" if model.guidance_embeds else f"guidance_scale {guidance:g} is not above 1"
    )
    return f"negative_prompt has no effect: {why}"


def _measured_elsewhere(chosen: Plan | None, info: ModelInfo) -> Iterable[str]:
    if chosen is not None and info.revision.name != "shapes":
        yield f"the options were chosen from measurements on shapes; {info.revision.name} may differ"


def _out_of_reach(request: GenerateRequest, judge: JudgeInfo) -> Iterable[str]:
    most = confidence_ceiling(request, judge)
    if request.stop is None or most is None or not request.stop.chosen("confidence"):
        return
    if request.stop.confidence >= most[0]:
        yield (
            f"stop.confidence {request.stop.confidence:g} is never reached: calibrated, judge {most[1]} "
            f"gives less than {most[0]:.3f} to every image"
        )


def _same_twice(judge: JudgeInfo) -> Iterable[str]:
    if judge.second is not None and judge.second.revision.revision == judge.revision.revision:
        yield f"both judges are of revision {judge.revision.revision}: rule lower_bound then ranks as margin does"


def _unknown_words(request: GenerateRequest, info: ModelInfo) -> Iterable[str]:
    if info.known_words is None:
        return
    known = set(info.known_words)
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        unknown = [word for word in words if word not in known]
        if unknown:
            listed = ", ".join(unknown[:12]) + (", ..." if len(unknown) > 12 else "")
            yield f"{field}: {info.revision.name} does not know the words {listed}; it cannot draw them"
