"""What the description of the API says beyond what FastAPI knows of the routes: refusals, images, links and keys."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from bestofn.service.api.access import OPEN_PATHS
from bestofn.service.api.content_negotiation import EVENTS, FORMATS
from bestofn.service.api.problem_details import MEDIA_TYPE, PREFIX, STATUS_UNDER_V1
from bestofn.service.api.request_bodies import FORM
from bestofn.service.core.rank_request import RankFields, RankRequest


class FieldError(BaseModel):
    """One of several things that are wrong with a request."""

    detail: str
    field: str | None = None


class Problem(BaseModel):
    """A problem document (RFC 9457). Programs read `code`, people `detail`, which says what to change."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(examples=["invalid_request"])
    field: str | None = Field(None, description="The field or header at fault.")
    errors: list[FieldError] | None = Field(None, description="All of them, if fields are at fault.")
    retry_after: float | None = Field(None, description="Seconds.")
    job: str | None = Field(None, description="Id of the job, if there is one.")
    request_id: str | None = None


class OpenAIFault(BaseModel):
    """What is said of an error under /v1."""

    message: str
    type: str
    param: str | None
    code: str
    job: str | None = Field(None, description="Id of the job, if there is one.")


class OpenAIProblem(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIFault


_SAID: Mapping[int, str] = {
    400: "The operator's prompt checker refuses the prompt.",
    401: "No key, or a wrong one.",
    403: "Host or Origin do not belong to this loopback server.",
    404: "There is none.",
    406: "Nothing that Accept names can be had.",
    408: "The body took too long.",
    409: "The job was cancelled.",
    410: "The job ended longer ago than results are kept.",
    413: "The body is too long.",
    415: "The body is of another media type.",
    422: "The request cannot be served as written: `field` is at fault, `detail` says what to change.",
    429: "Too much waits already, or too many calls of this key are open.",
    500: "The job has failed, or the server made a mistake.",
    503: "The queue is away or full, or no worker has been ready yet.",
    504: "The job is not done yet, or its deadline has passed.",
}

# Errors of each operation, in addition to those of every operation.
_JOB = (404, 410, 422)
_SUBMISSION = (409, 413, 415, 422, 429, 500, 504)
_REFUSALS: Mapping[str, tuple[int, ...]] = {
    "generate": (400, 406, *_SUBMISSION),
    "rank": (400, 406, 408, *_SUBMISSION),
    "generate_images": _SUBMISSION,
    "read_job": (*_JOB, 429),
    "cancel_job": _JOB,
    "read_image": _JOB,
    "read_thumbnail": _JOB,
    "read_events": (*_JOB, 429),
    "read_model": (404,),
}

_TEXT = {"schema": {"type": "string"}}
_SECONDS = {"description": "When to try again, in seconds.", "schema": {"type": "integer", "minimum": 0}}
_MILLISECONDS = {"description": "The same in milliseconds.", "schema": {"type": "integer", "minimum": 0}}
_LATER = {"Retry-After": _SECONDS, "retry-after-ms": _MILLISECONDS}
_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
# The whole text of a stream. Of its events `itemSchema` speaks, with which a document of OpenAPI 3.1 is not valid.
_EVENTS = {EVENTS: _TEXT}
_IMAGES = {f"image/{name}": _BYTES for name in FORMATS}
# A whole body that works: programs that make one of all fields join those that exclude each other.
_DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)
_PROMPT = {"prompt": "a photo of a red star left of a blue circle"}
_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "generate": {**_PROMPT, "num_samples": 32},
    "rank": {**_PROMPT, "images": [_DOT, _DOT]},
    "generate_images": {**_PROMPT, "n": 1, "quality": "medium"},
}
_LOCATION = {"Location": {"description": "Of the job.", "required": True, **_TEXT}}


class Described(FastAPI):
    """An application whose description is complete."""

    def __init__(self, *, keys: bool, **options: Any) -> None:
        """`keys`: whether callers need one."""
        super().__init__(generate_unique_id_function=lambda route: route.name, **options)
        self._keys = keys

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi(), self._keys)
        return self.openapi_schema


def _completed(document: dict[str, Any], keys: bool) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (Problem, OpenAIProblem):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    operations = {}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operations[operation["operationId"]] = operation
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "header":
                    parameter["schema"] = {"type": "string"}  # FastAPI adds null, which a header cannot be
            guarded = keys and path not in OPEN_PATHS
            if guarded:
                operation["security"] = [{"key": []}]
            refusals = (403, 500, 503, *([401] if guarded else []), *_REFUSALS.get(operation["operationId"], ()))
            operation["responses"].pop("422", None)
            operation["responses"] |= dict(sorted(_refusal(status, path) for status in refusals))
    operations["read_events"]["responses"]["200"]["content"] = _EVENTS
    operations["generate_images"]["responses"]["200"]["content"] |= _EVENTS
    for name in ("generate", "rank", "read_events"):
        operations[name]["responses"]["204"] = {"description": "Last-Event-ID names the last event of the job."}
    _describe_submission(operations["generate"], _IMAGES)
    _describe_submission(operations["rank"], {})
    operations["rank"]["requestBody"] = {"required": True, "content": _rank_bodies(schemas)}
    for name, example in _EXAMPLES.items():
        operations[name]["requestBody"]["content"]["application/json"]["example"] = example
    operations["read_image"]["responses"]["200"]["content"] = _IMAGES
    operations["read_thumbnail"]["responses"]["200"]["content"] = {"image/webp": _BYTES}
    for name in ("read_job", "cancel_job"):
        operations[name]["responses"]["200"]["headers"] = _LOCATION
    _say_double(document)
    return document


def _say_double(part: Any) -> None:
    """Say of every number in a part of the document that it has 64 bits: generators for Go take 32 otherwise."""
    if isinstance(part, dict):
        if part.get("type") == "number":
            part["format"] = "double"
        for inner in part.values():
            _say_double(inner)
    elif isinstance(part, list):
        for inner in part:
            _say_double(inner)


def _refusal(status: int, path: str) -> tuple[str, dict[str, Any]]:
    theirs = path.startswith(PREFIX)
    media, model = ("application/json", OpenAIProblem) if theirs else (MEDIA_TYPE, Problem)
    described: dict[str, Any] = {
        "description": _SAID[status],
        "content": {media: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}},
    }
    if status in (429, 503):
        described["headers"] = _LATER
    return str(STATUS_UNDER_V1.get(status, status) if theirs else status), described


def _rank_bodies(schemas: dict[str, Any]) -> dict[str, Any]:
    """The two kinds of body of POST /rank. Its schemas are added here, since the route reads the body itself.

    JSON is the first: many generators write code for the first kind alone. The form's schema has no name:
    openapi-generator imports a named one and does not write it.
    """
    reference = "#/components/schemas/{model}"
    json_body = RankRequest.model_json_schema(ref_template=reference)
    schemas |= json_body.pop("$defs", {}) | {"RankRequest": json_body}
    files = {name: json_body["properties"]["images"][name] for name in ("minItems", "maxItems")}
    form = RankFields.model_json_schema(ref_template=reference)
    for unused in ("$defs", "title"):
        form.pop(unused, None)
    form["properties"]["images"] = {"type": "array", "items": _BYTES["schema"], "title": "Images", **files}
    form["required"] = [*form["required"], "images"]
    form["description"] = "A form with the files of images. Fields but text are JSON."
    return {"application/json": {"schema": {"$ref": reference.format(model="RankRequest")}}, FORM: {"schema": form}}


def _describe_submission(operation: dict[str, Any], images: Mapping[str, Any]) -> None:
    """Its two good answers, and where a job's id goes next. Accept is no parameter in OpenAPI: media types say it."""
    operation["parameters"] = [p for p in operation["parameters"] if p["name"] != "accept"]
    answers = operation["responses"]
    job: dict[str, Any] = {"parameters": {"job_id": "$response.body#/id"}}
    onward: dict[str, Any] = {name: {"operationId": name, **job} for name in ("read_job", "cancel_job", "read_events")}
    onward["read_image"] = {"operationId": "read_image", "parameters": job["parameters"] | {"rank": "1"}}
    onward["read_thumbnail"] = {"operationId": "read_thumbnail", "parameters": job["parameters"] | {"candidate": "0"}}
    content = answers["200"]["content"]
    answers["202"] = {
        "description": "The job goes on.",
        "content": dict(content),
        "headers": _LOCATION | _LATER,
        "links": onward,
    }
    answers["200"] |= {
        "description": "The job's result, or its winner's image, or its events."
        if images
        else "The job's result, or its events.",
        "content": content | images | _EVENTS,
        "headers": _LOCATION,
        "links": onward,
    }
