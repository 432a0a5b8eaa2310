"""What HTTP clients, browsers and proxies expect of every route."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from httpx_sse import connect_sse

import bestofn
from bestofn.service.core.settings import Settings
from bestofn.service.engine.fake import FAILS
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]


@pytest.fixture
def http(served: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def job(http: httpx.Client) -> dict[str, Any]:
    body = {"prompt": "a ring", "num_samples": 64, "num_inference_steps": 1, "thumbnails": True}
    return dict(http.post("/generate", json=body).json())


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/{job}",
        "/jobs/{job}/images/1",
        "/jobs/{job}/thumbnails/0",
        "/jobs/{job}/events",
        "/livez",
        "/v1/models",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_head_is_answered_where_get_is(http: httpx.Client, job: dict[str, Any], path: str) -> None:
    url = path.format(job=job["id"])
    head = http.head(url)
    with http.stream("GET", url) as get:
        names = ("content-type", "content-encoding", "location")
        assert [head.headers.get(name) for name in names] == [get.headers.get(name) for name in names]
    assert (head.status_code, head.content) == (200, b"")


def test_head_of_what_only_takes_posts_says_so(http: httpx.Client) -> None:
    answer = http.head("/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert http.post("/status").headers["allow"] == "GET, HEAD"


def test_bytes_that_are_no_http_get_a_problem_with_the_usual_headers(served: Any) -> None:
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), PATIENCE) as caller:
        caller.sendall(b"\x16\x03\x01 of TLS\r\n\r\n")
        head, _, body = b"".join(iter(lambda: caller.recv(4096), b"")).partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])
    assert first.startswith("HTTP/1.1 400")
    assert (headers["content-type"], headers["x-content-type-options"]) == ("application/problem+json", "nosniff")
    assert json.loads(body)["request_id"] == headers["x-request-id"]


def test_http_2_gets_a_problem_that_names_the_version(served: Any) -> None:
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), PATIENCE) as caller:
        caller.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = b"".join(iter(lambda: caller.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert b"http_version_not_supported" in answer


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_offer_of_another_protocol_is_passed_over_without_a_warning(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    assert http.get("/livez", headers={"Connection": "Upgrade", "Upgrade": protocol}).is_success
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_metrics_name_the_whole_route(http: httpx.Client) -> None:
    http.post("/v1/images/generations", json={})
    found = set(re.findall('route="(/v1[^"]*|/images[^"]*)"', http.get("/metrics").text))
    assert "/v1/images/generations" in found
    assert all(route.startswith("/v1/") for route in found)


def test_examples_of_bodies_are_answered(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    bodies = {path: methods["post"]["requestBody"]["content"] for path, methods in paths.items() if "post" in methods}
    answers = {path: http.post(path, json=body["application/json"]["example"]) for path, body in bodies.items()}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(bodies, 200)


def test_json_is_compressed_for_those_who_accept_it_and_images_are_not(http: httpx.Client, job: dict[str, Any]) -> None:
    url = f"/jobs/{job['id']}"
    plain, packed = (http.get(url, headers={"Accept-Encoding": coding}) for coding in ("gzip;q=0", "br, gzip"))
    assert "content-encoding" not in plain.headers
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert packed.json() == plain.json()
    assert 4 * int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert "content-encoding" not in http.get(f"{url}/images/1").headers


def test_a_missing_rank_counts_its_images_in_english(http: httpx.Client, job: dict[str, Any]) -> None:
    assert "succeeded with 1 image;" in http.get(f"/jobs/{job['id']}/images/2").json()["detail"]


def test_models_with_a_slash_are_the_models(http: httpx.Client) -> None:
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()


@pytest.mark.parametrize(("trusted", "scheme"), [(("127.0.0.0/8",), "https"), (("10.0.0.1",), "http")])
def test_only_a_trusted_proxy_says_what_the_scheme_is(
    served: Any, serving: Serving, trusted: tuple[str, ...], scheme: str
) -> None:
    with serving(served.settings.model_copy(update={"trusted_proxies": trusted})) as api:
        answer = httpx.post(
            f"{api.url}/v1/images/generations",
            json={"prompt": "p", "response_format": "url", "num_samples": 1},
            headers={"X-Forwarded-Proto": "https"},
            timeout=PATIENCE,
        )
    assert answer.json()["data"][0]["url"].startswith(f"{scheme}://")


@pytest.mark.parametrize(("server", "status"), [("localhost:80", 200), ("example.net", 403)])
def test_absolute_target_is_understood_and_names_the_host(served: Any, server: str, status: int) -> None:
    address = served.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=PATIENCE) as connection:
        target = f"http://{server}/readyz?a=http://b"
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


def test_answers_that_say_nothing_of_caches_are_not_kept(http: httpx.Client, job: dict[str, Any]) -> None:
    paths = ("/readyz", "/status", "/metrics", "/v1/models", "/nothing", f"/jobs/{job['id']}/images/16")
    assert {http.get(path).headers["cache-control"] for path in paths} == {"no-store"}
    assert http.get("/docs/swagger-ui.css").headers["cache-control"] == "no-cache"


def test_a_limit_below_the_checkpoints_own_default_is_not_ready(served: Any, serving: Serving) -> None:
    with serving(served.settings.model_copy(update={"max_steps": 3})) as api:
        answer = httpx.get(f"{api.url}/readyz", timeout=PATIENCE)
    assert answer.status_code == 503
    assert "BESTOFN_MAX_STEPS is 3, but fake has a default num_inference_steps of 4" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"size": "100x64"}, "size", "the width in size must be a multiple"),
        ({"width": 100}, "width", "width must be a multiple"),
        ({"n": 16, "num_samples": 32, "draft": {"num_inference_steps": 1}}, "n", "n must be at most"),
    ],
)
def test_errors_name_the_field_that_the_caller_wrote(
    http: httpx.Client, fields: dict[str, Any], param: str, said: str
) -> None:
    error = http.post("/v1/images/generations", json={"prompt": "p", **fields}).json()["error"]
    assert (error["param"], said in error["message"]) == (param, True), error


@pytest.mark.parametrize(("prompt", "last"), [("a ring", "result"), (FAILS, "problem")])
def test_an_event_source_stops_after_the_last_event(http: httpx.Client, prompt: str, last: str) -> None:
    """The browser comes back with the last id after every end; 204 is what stops it, and `error` is its own event."""
    body = {"prompt": prompt, "num_samples": 2, "num_inference_steps": 1}
    job = http.post("/generate", json=body, headers={"Prefer": "respond-async"}).json()["id"]
    with connect_sse(http, "GET", f"/jobs/{job}/events") as source:
        events = list(source.iter_sse())
    assert events[-1].event == last
    assert "error" not in {event.event for event in events}
    for event, status in [(events[-2], 200), (events[-1], 204)]:
        with http.stream("GET", f"/jobs/{job}/events", headers={"Last-Event-ID": event.id}) as answer:
            assert answer.status_code == status
    with bestofn.Client(str(http.base_url)) as client:
        assert list(client.events(job, after=events[-1].id)) == []


def test_an_event_source_of_a_canceled_job_stops(http: httpx.Client) -> None:
    body = {"prompt": "p", "num_samples": 4096, "num_inference_steps": 100}
    job = http.post("/generate", json=body, headers={"Prefer": "respond-async"}).json()["id"]
    http.delete(f"/jobs/{job}")
    with connect_sse(http, "GET", f"/jobs/{job}/events") as source:
        *_, last = source.iter_sse()
    assert last.event == "problem"
    assert http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": last.id}).status_code == 204


def test_addresses_are_public_behind_a_proxy(served: Any, serving: Serving) -> None:
    """A proxy may pass its path prefix on or not, and name the upstream as Host."""
    base = "https://images.example/bestofn"
    with serving(served.settings.model_copy(update={"public_url": base})) as api:
        with httpx.Client(base_url=api.url, timeout=PATIENCE) as http:
            body = {"prompt": "p", "num_samples": 600, "num_inference_steps": 1, "thumbnails": True}
            answer = http.post("/bestofn/generate", json=body, headers={"Origin": "https://images.example"})
            job = answer.json()
            place = f"{base}/jobs/{job['id']}"
            assert answer.headers["location"] == place
            assert job["images"][0]["url"] == f"{place}/images/1"
            assert job["next"].startswith(f"{place}?")
            assert any((c["thumbnail"] or "").startswith(f"{place}/thumbnails/") for c in job["candidates"])
            for prefix in ("", "/bestofn"):
                assert http.get(f"{prefix}/jobs/{job['id']}/images/1").headers["content-type"] == "image/png"
            theirs = http.post(
                "/v1/images/generations",
                json={"prompt": "p", "response_format": "url"},
                headers={"Host": "images.example"},
            ).json()
            assert theirs["data"][0]["url"] == f"{base}/jobs/{theirs['job']}/images/1"
            assert http.get("/openapi.json").json()["servers"] == [{"url": base}]
            assert http.get("/", headers={"Origin": "https://evil.example"}).status_code == 403
        with bestofn.Client(api.url) as client:  # which knows another address than the public one
            assert len(client.result(job["id"]).candidates) == 600
