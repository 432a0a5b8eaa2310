"""/openapi.json as generators of clients read it."""

import json
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
