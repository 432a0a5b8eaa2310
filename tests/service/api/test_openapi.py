"""/openapi.json as generators of clients read it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from bestofn.service.api.app import create_app
from bestofn.service.core.settings import Settings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


@pytest.mark.parametrize("keys", [False, True], ids=["open", "keyed"])
def test_document_is_valid_openapi(tmp_path: Path, keys: bool) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    validate(create_app(Settings(keys_file=file if keys else None)).openapi())


def test_each_class_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    titles = [str(schema["title"]).lower() for schema in document["components"]["schemas"].values()]
    assert len(set(titles)) == len(titles)


def test_each_operation_belongs_to_one_group(document: dict[str, Any]) -> None:
    assert all(len(operation["tags"]) == 1 for operation in operations(document))


def test_images_are_binary_and_no_schema_is_empty(document: dict[str, Any]) -> None:
    contents = [
        (media, content)
        for operation in operations(document)
        for answer in operation["responses"].values()
        for media, content in answer.get("content", {}).items()
    ]
    assert all(content["schema"] for _, content in contents)
    images = [content["schema"] for media, content in contents if media.startswith("image/")]
    assert images
    assert all(schema == {"type": "string", "format": "binary"} for schema in images)


def test_the_servers_address_is_the_public_one() -> None:
    public = create_app(Settings(public_url="https://images.example/bestofn")).openapi()
    assert public["servers"] == [{"url": "https://images.example/bestofn"}]
    assert "localhost" not in json.dumps(public)
    assert "http://localhost:8123/generate" in create_app(Settings(port=8123)).openapi()["info"]["description"]


def properties(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and each alternative but null of the properties of all named schemas."""
    for schema in document["components"]["schemas"].values():
        for name, described in schema.get("properties", {}).items():
            yield from ((name, each) for each in described.get("anyOf", [described]) if each != {"type": "null"})


def test_integers_beyond_32_bits_and_all_numbers_have_64(document: dict[str, Any]) -> None:
    wide = re.compile(r"seed|created|.*_bytes|refused_calls|closed_connections")
    formats = [(name, each["type"], each.get("format")) for name, each in properties(document) if "type" in each]
    assert {format for name, kind, format in formats if kind == "integer" and wide.fullmatch(name)} == {"int64"}
    assert {format for _, kind, format in formats if kind == "number"} == {"double"}


def test_headers_are_never_null(document: dict[str, Any]) -> None:
    given = [
        one for operation in operations(document) for one in operation.get("parameters", ()) if "content" not in one
    ]
    assert {json.dumps(one["schema"]) for one in given if one["in"] == "header"} == {'{"type": "string"}'}


def test_rank_has_the_json_body_first_and_a_form_without_a_name(document: dict[str, Any]) -> None:
    bodies = document["paths"]["/rank"]["post"]["requestBody"]["content"]
    assert list(bodies) == ["application/json", "multipart/form-data"]
    assert "title" not in bodies["multipart/form-data"]["schema"]


def test_a_stream_is_text(document: dict[str, Any]) -> None:
    contents = [answer.get("content", {}) for one in operations(document) for answer in one["responses"].values()]
    streams = [content["text/event-stream"]["schema"] for content in contents if "text/event-stream" in content]
    assert streams == [{"type": "string"}] * 4
