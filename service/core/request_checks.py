"""Checks of a request's fields against the model, the judge and the server's limits: errors and warnings."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import Draft, Plan, Stop
from bestofn.service.core.schemas import LEAST_SIZE, MAX_SEED, GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.core.workers import JudgeInfo, ModelInfo

TokenCounter = Callable[[str, str], int]
"""(SHA-256 of a tokenizer.json, text) -> number of tokens, control tokens included."""

INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")  # categories
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols that show nothing


def checked_depth(field: str, asked: int | None, info: ModelInfo) -> int | None:
    """The depth to use; None: all layers."""
    name, most = info.revision.name, info.depth
    if asked is None or asked == most:
        return None
    if info.pipeline is not None:
        raise InvalidRequest(
            f"{field} is not offered: {info.pipeline.name} runs all its layers; leave it out", field=field
        )
    if most is None:
        raise InvalidRequest(f"{field} is not supported by the running workers of {name}; restart them", field=field)
    check_at_most(field, asked, most, f"the layers of {name}")
    if info.layer_order is None:
        raise InvalidRequest(
            f"{field} must be {most}: the importance of the layers of {name} is not measured. Run `bestofn models "
            "importance`, then restart the workers",
            field=field,
        )
    return asked


def checked_draft(request: GenerateRequest, steps: int, depth: int | None, info: ModelInfo) -> Draft | None:
    """The draft to use. It must be cheaper than a full solution: fewer steps or fewer layers."""
    if request.draft is None:
        return None
    asked = checked_depth("draft.depth", request.draft.depth, info)
    if request.draft.depth is not None and depth is not None:
        check_at_most("draft.depth", request.draft.depth, depth, "the depth of a full solution")
    shallower = asked is not None and asked != depth
    if request.draft.num_inference_steps > steps - (not shallower):
        raise InvalidRequest(
            f"draft.num_inference_steps must be {'at most' if shallower else 'fewer than'} the {steps} of a full "
            f"solution, got {request.draft.num_inference_steps}",
            field="draft.num_inference_steps",
        )
    return request.draft.model_copy(update={"depth": asked if shallower else None})


def stop_of(request: GenerateRequest, judges: Sequence[JudgeInfo]) -> Stop | None:
    """The stopping rule. A confidence that was left out is relative to the confidence ceiling."""
    stop = request.stop
    if stop is None or stop.chosen("confidence") or (most := confidence_ceiling(judges)) is None:
        return stop
    return stop.model_copy(update={"confidence": stop.confidence * most[0]})


def confidence_ceiling(judges: Sequence[JudgeInfo]) -> tuple[float, str] | None:
    """Lowest calibration ceiling among the judges, with that judge's name; None if no judge is calibrated."""
    return min(((one.calibration.ceiling, one.revision.name) for one in judges if one.calibration), default=None)


def check_text(field: str, text: str) -> None:
    for position, character in enumerate(text):
        if character == "\0":
            raise InvalidRequest(f"{field} holds a NUL character at position {position}; remove it", field=field)
        if "\ud800" <= character <= "\udfff":
            raise InvalidRequest(f"{field} holds a lone surrogate at position {position}; remove it", field=field)


def check_prompt(prompt: str) -> None:
    check_text("prompt", prompt)
    if is_blank(prompt):
        raise InvalidRequest("prompt is blank; say what the image should show", field="prompt")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only separators, controls, zero-width characters and fillers."""
    return all(unicodedata.category(character) in INVISIBLE or character in FILLERS for character in text)


def check_at_most(field: str, value: float, limit: float, what: str) -> None:
    if value > limit:
        raise InvalidRequest(f"{field} must be at most {limit} ({what}), got {str(value)[:20]}", field=field)


def checked_size(field: str, asked: int | None, default: int, info: ModelInfo, settings: Settings) -> int:
    value = default if asked is None else asked
    step, most = info.size_multiple, min(info.max_size, settings.max_size)
    least = -(-LEAST_SIZE // step) * step
    if value % step or not least <= value <= most:
        near = min(max(step * ((value + step // 2) // step), least), most - most % step)
        raise InvalidRequest(
            f"{field} must be a multiple of {step} from {least} to {most - most % step} for {info.revision.name}, "
            f"got {str(value)[:20]}; the nearest is {near}",
            field=field,
        )
    return value


def forbidden_default(info: ModelInfo, settings: Settings) -> str | None:
    """Why a request that leaves all of a model's defaults would be refused; None if it would not."""
    for value, limit, what, variable in (
        (info.num_inference_steps, settings.max_steps, "num_inference_steps", "BESTOFN_MAX_STEPS"),
        (info.guidance_scale, settings.max_guidance, "guidance_scale", "BESTOFN_MAX_GUIDANCE"),
        (max(info.width, info.height), settings.max_size, "size", "BESTOFN_MAX_SIZE"),
    ):
        if value > limit:
            return (
                f"{variable} is {limit:g}, but {info.revision.name} has a default {what} of {value:g}: raise the limit"
            )
    return None


def check_tokens(field: str, tokens: int, info: ModelInfo) -> None:
    """Raise InvalidRequest if a text has more tokens than the encoder reads."""
    if tokens > info.token_limit:
        excess = tokens - info.token_limit
        raise InvalidRequest(
            f"{field} has {tokens} tokens, but {info.revision.name} reads {info.token_limit}; shorten it by "
            f"{excess} (about {round(0.75 * excess) or 1} words)",
            field=field,
        )


def check_readable(prompt: str, judge: JudgeInfo, count_tokens: TokenCounter) -> None:
    """Raise InvalidRequest if the judge cannot read the question with this prompt in it."""
    limit = judge.prompt_limit
    if limit is None:
        return
    tokens = count_tokens(limit.tokenizer_sha256, limit.question.replace("{prompt}", prompt))
    if tokens > limit.tokens:
        raise InvalidRequest(
            f"prompt makes a question of {tokens} tokens, but the judge {judge.revision.name} reads {limit.tokens}; "
            f"shorten it by {tokens - limit.tokens} tokens",
            field="prompt",
        )


def checked_guidance(asked: float | None, info: ModelInfo, settings: Settings) -> float:
    """The guidance scale to use."""
    pipeline = info.pipeline
    if asked not in (None, info.guidance_scale) and pipeline is not None and pipeline.guidance is None:
        raise InvalidRequest(
            f"guidance_scale is not offered: {pipeline.name} takes none; leave it out", field="guidance_scale"
        )
    guidance = info.guidance_scale if asked is None else asked
    check_at_most("guidance_scale", guidance, settings.max_guidance, "the limit of BESTOFN_MAX_GUIDANCE")
    return guidance


def check_seed(seed: int, num_samples: int) -> None:
    """Raise InvalidRequest if the last candidate would have no seed."""
    greatest = MAX_SEED - num_samples + 1
    if seed > greatest:
        raise InvalidRequest(
            f"seed + num_samples must not pass 2**63, so that every candidate has a seed; "
            f"the greatest seed for {num_samples} candidates is {greatest}",
            field="seed",
        )


def request_warnings(
    request: GenerateRequest, model: ModelInfo, judges: Sequence[JudgeInfo], chosen: Plan | None
) -> list[str]:
    """All warnings for the job's caller.

    Args:
        request: the request, with the options that an effort or a budget chose.
        model: the model that serves it.
        judges: the one or two judges that decide.
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
    stop = request.stop
    if stop is not None and stop.chosen("confidence"):
        most = confidence_ceiling(judges)
        if most is not None and stop.confidence >= most[0]:
            warnings.append(
                f"stop.confidence {stop.confidence:g} is never reached: calibrated, judge {most[1]} gives less than "
                f"{most[0]:.3f} to every image"
            )
    revision = judges[0].revision.revision
    if any(second.revision.revision == revision for second in judges[1:]):
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
