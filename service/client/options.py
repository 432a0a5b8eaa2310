"""The fields of a request, as keyword arguments."""

from collections.abc import Mapping
from typing import Literal, TypedDict

from bestofn.judge.verdict import Rule
from bestofn.service.core.budget import Effort
from bestofn.service.core.jobs import ImageFormat, Priority


class Options(TypedDict, total=False):
    """What POST /generate takes beside the prompt; what is left out takes the server's and checkpoint's defaults.

    `num_samples` is N, the candidates that are drawn and judged; `top_k` the winners returned; candidate i is drawn
    from seed `seed + i` (random if left out); `width` and `height` are pixels; `depth` is how
    many of the transformer's blocks draw; `thumbnails` keeps small images of all
    candidates; `model` and `judge` are names that the server deploys.
    """

    negative_prompt: str
    num_samples: int
    top_k: int
    seed: int | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    depth: int | None
    model: str | None
    judge: str | None
    rule: Rule | Literal["margin", "official", "lower_bound"]
    priority: Priority
    deadline_seconds: float | None
    draft: Mapping[str, float] | None
    stop: Mapping[str, float] | None
    finals: Mapping[str, float] | None
    effort: Effort | None
    budget: Mapping[str, float] | None
    format: ImageFormat
    embed_prompt: bool
    thumbnails: bool
