"""/openapi.json as generators of clients read it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bestofn.service.api.app import create_app
from bestofn.service.core.settings import Settings

GENERATOR = shutil.which("openapi-python-client")  # in an environment of its own: its pins contradict ours
ROUND_TRIP = """
import sys
from bestofn_client import Client
from bestofn_client.api.jobs import generate
from bestofn_client.api.open_ai import generate_images, list_models
from bestofn_client.models import GenerateRequest, ImagesRequest

client = Client(base_url=sys.argv[1], timeout=600)
job = generate.sync(client=client, body=GenerateRequest(prompt="p", num_inference_steps=1))
images = generate_images.sync(client=client, body=ImagesRequest(prompt="p", n=2, num_inference_steps=1))
print(job.status, len(job.candidates), len(images.data), list_models.sync(client=client).data[0].id)
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


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
    assert all(content.get("schema") or content.get("itemSchema") for _, content in contents)
    images = [content["schema"] for media, content in contents if media.startswith("image/")]
    assert images
    assert all(schema == {"type": "string", "format": "binary"} for schema in images)


def test_the_servers_address_is_the_public_one() -> None:
    public = create_app(Settings(public_url="https://images.example/bestofn")).openapi()
    assert public["servers"] == [{"url": "https://images.example/bestofn"}]
    assert "localhost" not in json.dumps(public)
    assert "http://localhost:8123/generate" in create_app(Settings(port=8123)).openapi()["info"]["description"]


@pytest.mark.skipif(GENERATOR is None, reason="needs openapi-python-client on PATH: pipx install openapi-python-client")
def test_a_generated_client_makes_a_round_trip(served: Any, document: dict[str, Any], tmp_path: Path) -> None:
    described, client = tmp_path / "openapi.json", tmp_path / "client"
    described.write_text(json.dumps(document))
    command = [str(GENERATOR), "generate", "--path", str(described), "--output-path", str(client)]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP, served.url],
        env={**os.environ, "PYTHONPATH": str(client)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["succeeded", "16", "2", "fake"], done.stderr
