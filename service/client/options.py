"""The fields of a request, as keyword arguments."""

import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from bestofn.judge.verdict import Rule
from bestofn.service.core.budget import Effort
from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import ImageFormat, Priority


class RankOptions(TypedDict, total=False):
    """Options of POST /rank. Options that are left out take the server's defaults."""

    top_k: int
    judge: str | None
    rule: Rule | Literal["margin", "official", "lower_bound"]
    finals: Mapping[str, float] | None
    priority: Priority
    deadline_seconds: float | None
    thumbnails: bool
    webhook: str | None


class Options(RankOptions, total=False):
    """Options of POST /generate except the prompt. Options that are left out take the server's defaults.

    `num_samples` is N, the number of candidates, and `top_k` the number of winners returned. Candidate i is drawn from
    `seed` + i; the seed is random if left out. `width` and `height` are in pixels. `depth` is the number of layers that
    run. `thumbnails` keeps a thumbnail of each candidate. `model` and `judge` are names that the server deploys.
    """

    negative_prompt: str
    num_samples: int
    seed: int | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    depth: int | None
    model: str | None
    draft: Mapping[str, float] | None
    stop: Mapping[str, float] | None
    effort: Effort | None
    budget: Mapping[str, float] | None
    format: ImageFormat
    embed_prompt: bool | None


def as_json(name: str, value: Any) -> str:
    """A field's value as JSON. Raises InvalidRequest if JSON cannot hold it, such as a number of numpy."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{name} cannot be written as JSON ({error}): give plain Python values, such as int({name})", field=name
        ) from error
    return text
