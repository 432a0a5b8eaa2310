"""The OpenAI shape of the wire: what /v1/images/generations and /v1/models take and return."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bestofn.service.core.errors import InvalidRequest
from bestofn.service.core.jobs import ImageFormat, Revision
from bestofn.service.core.request_model import Int64
from bestofn.service.core.schemas import GenerateRequest, VerdictOut
from bestofn.service.core.workers import PipelineCall

Quality = Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"]

# Candidates of each quality. 16 is the default of POST /generate.
CANDIDATES: Mapping[Quality, int] = {
    "low": 4,
    "auto": 16,
    "medium": 16,
    "standard": 16,
    "high": 32,
    "hd": 32,
    "xhigh": 64,
    "max": 128,
}

CELL = 32  # pixels; one latent token of SANA has this side

# Our fields that have another name in OpenAI's API, with that name.
_THEIRS = {"top_k": "n", "format": "output_format", "width": "size", "height": "size"}


class ImagesRequest(GenerateRequest):
    """OpenAI's fields on top of all of POST /generate (the openai package sends those as `extra_body`).

    Fields that clients send unasked and that change nothing here give a warning in the answer.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "a photo of a red star left of a blue circle", "n": 2, "num_samples": 32}]
        }
    )
    n: int | None = Field(default=None, strict=True, ge=1, le=16, description="Images returned, best first: top_k.")
    size: str | None = Field(
        default=None,
        pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
        description="WIDTHxHEIGHT in pixels; auto: the checkpoint's.",
        examples=["auto", "1024x1024"],
    )
    quality: Quality | None = Field(
        default=None,
        description="Candidates drawn, unless num_samples says so: "
        + ", ".join(f"{name} {count}" for name, count in CANDIDATES.items())
        + "; never fewer than n.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description="b64_json, unless the server has another default; a url works without a key for an hour or more.",
    )
    output_format: ImageFormat | None = Field(default=None, description="png by default.")
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        default=None, description="Ignored: images are opaque."
    )
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Ignored: nothing is moderated.")
    output_compression: int | None = Field(
        default=None, strict=True, ge=0, le=100, description="Ignored: WebP and JPEG are at quality 95."
    )
    style: str | None = Field(default=None, description="Ignored: say it in the prompt.")
    stream: bool | None = Field(
        default=None, strict=True, description="Server-sent events: partial images, then the completed one."
    )
    partial_images: int | None = Field(
        default=None, strict=True, ge=0, le=3, description="With stream: times at which the best so far is sent."
    )
    user: str | None = Field(default=None, description="Repeated as `safety_identifier` of the answer.")
    safety_identifier: str | None = Field(default=None, description="Repeated in the answer.")

    def generate_request(self, max_samples: int, aliases: Mapping[str, str] | None = None) -> GenerateRequest:
        """The equivalent body of POST /generate.

        Args:
            max_samples: limit of the server for the candidates of each `quality`.
            aliases: further names of models, each with the name that is deployed.

        Raises:
            InvalidRequest: an option is not supported, or two fields set the same option.
        """
        if self.partial_images and not self.stream:
            raise InvalidRequest("partial_images: need stream: true, or leave them out", field="partial_images")
        asked = {name: getattr(self, name) for name in GenerateRequest.model_fields if self.chosen(name)}
        for name, theirs in self._twins().items():
            ours = asked.setdefault(name, theirs)
            if ours != theirs:
                raise InvalidRequest(
                    f"{_THEIRS[name]} and {name} set the same option; leave one out", field=_THEIRS[name]
                )
        if "model" in asked:
            asked["model"] = (aliases or {}).get(asked["model"], asked["model"])
        if self.stream and self.partial_images:
            asked["thumbnails"] = True  # the best so far is shown by its thumbnail until its heat is done
        winners = asked.get("top_k", 1)
        if not asked.keys() & {"num_samples", "effort", "budget"}:
            asked["num_samples"] = min(max(CANDIDATES[self.quality or "auto"], winners), max_samples)
        if winners > asked.get("num_samples", winners):
            raise InvalidRequest(
                f"n must be at most num_samples, the number of candidates drawn, which is {asked['num_samples']}; "
                f"got {winners}",
                field="n",
            )
        # Every value has been validated as a field of this class; sizes are checked against the checkpoint later.
        return GenerateRequest.model_construct(set(asked), **asked)

    def in_their_words(self, error: InvalidRequest) -> InvalidRequest:
        """The error of our field, as one of the field that the caller wrote."""
        field = error.field or ""
        if self.chosen(field) or field not in self._twins():
            return error
        theirs = _THEIRS[field]
        named = f"the {field} in size" if theirs == "size" else theirs
        return type(error)(re.sub(rf"^{field}\b", named, error.detail), field=theirs)

    @property
    def unused(self) -> list[str]:
        """Warnings about fields that have no effect."""
        lossy = "WebP and JPEG are at quality 95, PNG is lossless"
        reasons: Sequence[tuple[str, bool, str]] = (
            ("style", self.style is not None, "say it in the prompt"),
            ("output_compression", self.output_compression not in (None, 100), lossy),
            ("moderation", self.moderation is not None, "nothing is moderated"),
            ("background", self.background == "transparent", "images are opaque"),
        )
        return [f"{field} has no effect: {reason}" for field, unused, reason in reasons if unused]

    def _twins(self) -> dict[str, Any]:
        """Our names of the options chosen by OpenAI's names. A value that clients send unasked chooses none."""
        chosen: dict[str, Any] = {}
        if self.n not in (None, 1):
            chosen["top_k"] = self.n
        if self.output_format not in (None, "png"):
            chosen["format"] = self.output_format
        if self.size not in (None, "auto"):
            chosen["width"], chosen["height"] = map(int, str(self.size).split("x"))
        return chosen


class GeneratedImage(BaseModel):
    """One winner. `b64_json` or `url` is OpenAI's, the rest is ours."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Absolute; works without a key for an hour or more.")
    seed: Int64
    candidate: int
    score: float | None = Field(description="p_yes of the verdict.")
    verdict: VerdictOut


class InputTokens(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class TokenUsage(BaseModel):
    """OpenAI's usage, in tokens; GET /jobs/{job} has the cost in TFLOPs and seconds."""

    input_tokens: int = Field(description="Tokens of the prompts, as the text encoder counts them.")
    input_tokens_details: InputTokens
    output_tokens: int = Field(description="Cells of 32 x 32 pixels, of all candidates that were drawn.")
    total_tokens: int

    @classmethod
    def of(cls, text_tokens: int, candidates: int, width: int, height: int) -> "TokenUsage":
        """The usage of a job whose prompts have `text_tokens`, and whose images have these sides in pixels."""
        drawn = candidates * math.ceil(width / CELL) * math.ceil(height / CELL)
        return cls(
            input_tokens=text_tokens,
            input_tokens_details=InputTokens(text_tokens=text_tokens),
            output_tokens=drawn,
            total_tokens=text_tokens + drawn,
        )


def quality_of(num_samples: int) -> Quality:
    """OpenAI's name of the greatest quality that draws no more than this number of candidates."""
    names: Sequence[Quality] = ("max", "xhigh", "high", "medium")
    return next((name for name in names if CANDIDATES[name] <= num_samples), "low")


class ImagesResponse(BaseModel):
    """Winners, best first."""

    model_config = ConfigDict(protected_namespaces=())
    created: Int64 = Field(description="Unix time in seconds.")
    data: list[GeneratedImage]
    output_format: ImageFormat
    size: str
    quality: Quality = Field(description="low, medium, high, xhigh or max, by the number of candidates.")
    background: Literal["opaque"] = "opaque"
    usage: TokenUsage | None = None
    safety_identifier: str | None = Field(default=None, description="That of the request, or its `user`.")
    job: str = Field(description="Id of the job: GET /jobs/{job} has all candidates and the bracket.")
    num_samples: int
    stopped: str | None = Field(default=None, description="With `stop`: `confident` or `patience`, if it ended early.")
    confidence: float | None = Field(default=None, description="With `stop`: probability that the best is right.")
    model: Revision
    judge: Revision
    warnings: list[str] = []


class PartialImage(BaseModel):
    """An event of a stream: the best candidate so far. `candidate` to `num_samples` are ours."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="0 for the first one.")
    b64_json: str
    created_at: Int64 = Field(description="Unix time in seconds.")
    output_format: ImageFormat = Field(description="webp: a thumbnail, as the candidate's heat is not done yet.")
    size: str
    quality: Quality
    background: Literal["opaque"] = "opaque"
    candidate: int
    seed: Int64
    verdict: VerdictOut
    judged: int = Field(description="Candidates judged so far.")
    num_samples: int


class CompletedImage(ImagesResponse):
    """The last event of a stream: the answer of a call without one, with the winner's bytes at its top."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str = Field(description="The winner; `data` has it too, and the others of n.")
    created_at: Int64


class OpenAIModel(BaseModel):
    """A model that requests can name. `id`, `object`, `created` and `owned_by` are OpenAI's, the rest is ours."""

    id: str
    object: Literal["model"] = "model"
    created: Int64 = Field(description="Unix time in seconds at which a worker last brought it up.")
    owned_by: str
    revision: str
    judges: list[Revision] = Field(description="Judges deployed with it.")
    width: int = Field(description="Default width in pixels.")
    height: int
    max_size: int
    num_inference_steps: int
    guidance_scale: float
    depths: list[int] = Field(description="Numbers of layers that `depth` may name; the last is all of them.")
    pipeline: PipelineCall | None = Field(description="Class and arguments of plain diffusers; null for SANA.")
    workers: int = Field(description="Warm workers; a job without one waits.")


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


def error_body(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A problem document in OpenAI's error form."""
    status = int(problem["status"])
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {
        "message": problem["detail"],
        "type": kind,
        "param": problem.get("field"),
        "code": problem["code"],
    }
    return {"error": error | ({"job": problem["job"]} if "job" in problem else {})}
