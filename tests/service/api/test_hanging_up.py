"""Under /v1 a caller that hangs up cancels its job, unless it holds a key or the OpenAI client calls again."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from bestofn.service.core.settings import Settings
from tests.waiting import PATIENCE, until

Serving = Callable[[Settings], AbstractContextManager[Any]]
PATH = "/v1/images/generations"
LONG = {"num_samples": 4096, "num_inference_steps": 100}  # minutes of the fake engine


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client


def active(http: httpx.Client) -> int:
    return sum(load["jobs"] for load in http.get("/status").json()["queue"]["by_priority"].values())


def hang_up(http: httpx.Client, prompt: str, headers: dict[str, str] | None = None, calls: int = 1) -> None:
    """Call, several times at once, and hang up when the jobs are accepted, however long that takes."""
    until(lambda: active(http) == 0)  # of the tests before
    request = http.build_request("POST", PATH, json={"prompt": prompt, **LONG}, headers=headers)
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
    with contextlib.ExitStack() as open_calls:
        for _ in range(calls):
            caller = socket.create_connection((request.url.host, request.url.port), PATIENCE)
            open_calls.enter_context(caller).sendall("\r\n".join(lines).encode() + request.content)
        until(lambda: active(http) == calls)


def test_a_caller_that_hangs_up_cancels_its_job(http: httpx.Client) -> None:
    hang_up(http, "gone")
    until(lambda: active(http) == 0)


def test_a_caller_with_an_idempotency_key_comes_back_to_its_job(http: httpx.Client) -> None:
    key = {"Idempotency-Key": "comes back"}
    hang_up(http, "back", key)
    time.sleep(0.5)
    answer = http.post(PATH, json={"prompt": "back", **LONG}, headers=key | {"Prefer": "wait=1"})
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (504, "true")
    place = answer.headers["location"]
    assert place.startswith(f"{http.base_url}".rstrip("/"))
    assert place in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "true"
    assert http.delete(place).json()["status"] == "canceled"


def test_the_openai_clients_last_retry_hangs_up_and_no_job_is_left(served: Any, http: httpx.Client) -> None:
    with (
        OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=2, timeout=1.0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(prompt="retried", extra_body=LONG)
    until(lambda: active(http) == 0)


def test_a_retry_gets_the_images_of_the_job_that_the_first_request_began(served: Any) -> None:
    seconds = {"num_samples": 32, "num_inference_steps": 100}  # 2 s of the fake engine
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=100, timeout=1.0) as client:
        answer = client.images.with_raw_response.generate(prompt="patient", extra_body=seconds)
    assert answer.headers["idempotent-replayed"] == "true"
    assert answer.parse().num_samples == 32


def test_equal_calls_at_once_stay_two_jobs(http: httpx.Client) -> None:
    first = {"x-stainless-retry-count": "4"}  # a client that comes back late
    hang_up(http, "twins", first, calls=2)
    jobs = set()
    for _ in range(2):
        retry = {"x-stainless-retry-count": "5", "Prefer": "wait=1"}
        answer = http.post(PATH, json={"prompt": "twins", **LONG}, headers=retry)
        assert answer.headers["x-should-retry"] == "false"
        jobs.add(answer.headers["location"])
    assert len(jobs) == 2
    for place in jobs:
        http.delete(place)


def test_a_call_waits_longer_than_generate_does(served: Any, serving: Serving) -> None:
    with serving(served.settings.model_copy(update={"max_wait_seconds": 0.2})) as api:
        body = {"prompt": "p", "num_samples": 16, "num_inference_steps": 50}
        assert httpx.post(f"{api.url}/generate", json=body, timeout=PATIENCE).status_code == 202
        assert httpx.post(f"{api.url}{PATH}", json=body, timeout=PATIENCE).status_code == 200
