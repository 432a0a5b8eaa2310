"""Fields are judged by their value: what a generated client sends of the published defaults and nulls is no choice."""

from typing import Any

import httpx
import pytest

from bestofn.service.core.budget import Budget
from bestofn.service.core.jobs import Draft, Finals, Stop
from bestofn.service.core.openai_schemas import ImagesRequest
from bestofn.service.core.schemas import GenerateRequest
from tests.waiting import PATIENCE

ASYNC = {"Prefer": "respond-async"}


def published(schema: dict[str, Any]) -> dict[str, Any]:
    """The body of a client that sends every field: its published default, or null where there is none."""
    fields = {name: field.get("default") for name, field in schema["properties"].items()}
    return fields | {"prompt": "p", "num_inference_steps": 1}


@pytest.mark.parametrize(
    ("path", "changed", "expected"),
    [
        ("/generate", {}, {"num_samples": 16}),
        ("/generate", {"effort": "low"}, {"effort": None}),
        ("/generate", {"num_samples": 4.0, "top_k": 2.0, "guidance_scale": 3}, {"num_samples": 4, "top_k": 2}),
        ("/generate", {"draft": {"depth": None, "num_inference_steps": 1.0}, "num_inference_steps": 2}, {}),
        ("/v1/images/generations", {}, {"num_samples": 16}),
        ("/v1/images/generations", {"n": 2}, {"top_k": 2}),
        ("/v1/images/generations", {"quality": "low"}, {"num_samples": 4}),
        ("/v1/images/generations", {"size": "96x64"}, {"width": 96, "height": 64}),
        ("/v1/images/generations", {"size": "96x64", "width": 96}, {"width": 96, "height": 64}),
        ("/v1/images/generations", {"output_format": "webp"}, {"format": "webp"}),
    ],
)
def test_fields_with_their_published_default_conflict_with_nothing(
    served: Any, path: str, changed: dict[str, Any], expected: dict[str, Any]
) -> None:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as http:
        document = http.get("/openapi.json").json()
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = document["components"]["schemas"][content["$ref"].rpartition("/")[2]]
        answer = http.post(path, json=published(schema) | changed)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        parameters = http.get(f"/jobs/{body.get('job', body.get('id'))}").json()["parameters"]
        assert {name: parameters.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("accept", "format", "expected"),
    [
        ("image/webp", "png", "image/webp"),
        ("image/webp, image/png;q=0.1", "png", "image/png"),
        ("image/*", "jpeg", "image/jpeg"),
        ("image/webp", "jpeg", None),
    ],
)
def test_accept_and_format_conflict_only_where_both_choose(
    served: Any, accept: str, format: str, expected: str | None
) -> None:
    body = {"prompt": "p", "num_samples": 1, "format": format}
    answer = httpx.post(f"{served.url}/generate", json=body, headers={"Accept": accept}, timeout=PATIENCE)
    assert answer.headers["content-type"] == (expected or "application/problem+json")


def test_a_repetition_with_the_defaults_spelled_out_is_the_same_request(served: Any) -> None:
    headers = ASYNC | {"Idempotency-Key": "spelled out"}
    bodies = [{"prompt": "p"}, {"prompt": "p", "num_samples": 16, "seed": None, "top_k": 1.0}]
    answers = [httpx.post(f"{served.url}/generate", json=b, headers=headers, timeout=PATIENCE) for b in bodies]
    assert answers[0].json()["id"] == answers[1].json()["id"]


@pytest.mark.parametrize("model", [GenerateRequest, ImagesRequest, Draft, Stop, Finals, Budget])
def test_every_optional_field_may_be_null_as_published(model: Any) -> None:
    schema = model.model_json_schema()
    optional = [name for name in schema["properties"] if name not in schema.get("required", ())]
    assert all({"type": "null"} in schema["properties"][name]["anyOf"] for name in optional)
    required = dict.fromkeys(schema.get("required", ()), "p")
    assert model(**required | dict.fromkeys(optional)) == model(**required)
