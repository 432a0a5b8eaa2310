"""Requests from the documentation and the tests of other servers of OpenAI's images API, sent to ours."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import PATIENCE

REQUESTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("peer_requests.json").read_text(encoding="utf-8"))
MODELS = ("SD-Turbo", "sd-turbo", "stablediffusion", "sd-cpp-local")


def wrong(http: httpx.Client, case: dict[str, Any]) -> str | None:
    """What is wrong with the answer to a peer's request; None: it is as listed, in OpenAI's form."""
    body, wanted = case["body"], case.get("ours", case["theirs"])
    answer = http.post("/v1/images/generations", json=body)
    found = answer.json()
    if answer.status_code != wanted:
        return f"{case['peer']} {body}: {answer.status_code} in place of {wanted}: {found}"
    if wanted != 200:
        named = found["error"].keys() >= {"message", "type", "param", "code"}
        return None if named else f"{case['peer']} {body}: {found}"
    kind = body.get("response_format", "b64_json")
    complete = found.keys() >= {"created", "data", "size", "quality", "output_format", "usage"}
    images = [image for image in found["data"] if image.get(kind)]
    return None if complete and len(images) == body.get("n", 1) else f"{case['peer']} {body}: {sorted(found)}"


def test_requests_of_peers_are_answered_as_listed(served: Any, serving: Any) -> None:
    aliases = dict.fromkeys(MODELS, "fake")
    with (
        serving(served.settings.model_copy(update={"model_aliases": aliases})) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
        ThreadPoolExecutor(8) as senders,
    ):
        found = senders.map(lambda case: wrong(http, case), REQUESTS)
        assert [fault for fault in found if fault] == []


def test_every_difference_has_a_reason() -> None:
    described = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    reasons = {case["why"] for case in REQUESTS if case.get("ours", case["theirs"]) != case["theirs"]}
    assert reasons
    assert all(f"| {reason} |" in described for reason in reasons)
