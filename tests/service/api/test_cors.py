"""Pages of other origins: refused unless a setting names them, and then served as browsers need it, with keys too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from pydantic import ValidationError

from bestofn.service.core.settings import Settings
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]
SITE, EVIL = "https://shop.example", "https://evil.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,prefer",
}
BODY = {"prompt": "a ring", "num_samples": 2, "num_inference_steps": 1}


@pytest.fixture(params=["open", "keyed"])
def site(served: Any, serving: Serving, keys: Any, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A page of the named origin, which sends the key where the server has keys."""
    keyed = request.param == "keyed"
    update = {"cors_origins": (SITE, "http://localhost:3000"), **(keys("sesame") if keyed else {})}
    headers = {"Origin": SITE} | ({"Authorization": "Bearer sesame"} if keyed else {})
    with (
        serving(served.settings.model_copy(update=update)) as api,
        httpx.Client(base_url=api.url, headers=headers, timeout=PATIENCE) as client,
    ):
        yield client


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations", "/jobs/1"])
def test_a_preflight_needs_no_key(site: httpx.Client, path: str) -> None:
    answer = httpx.options(f"{site.base_url}{path}", headers=PREFLIGHT | {"Origin": SITE}, timeout=PATIENCE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SITE
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert {"POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    stranger = httpx.options(f"{site.base_url}{path}", headers=PREFLIGHT | {"Origin": EVIL}, timeout=PATIENCE)
    assert (stranger.status_code, stranger.headers.get("access-control-allow-origin")) == (400, None)


def test_every_header_of_an_answer_can_be_read_by_the_page(site: httpx.Client) -> None:
    common = {"content-type", "content-length", "cache-control", "date", "vary", "connection"}
    policies = {"x-content-type-options", "referrer-policy", "content-security-policy"}
    answers = [
        site.post("/generate", json=BODY, headers={"Accept": "image/png"}),
        site.post("/generate", json=BODY, headers={"Prefer": "respond-async"}),
        site.post("/generate", json={"prompt": "p", "num_samples": 300, "num_inference_steps": 1}),
        site.post("/v1/images/generations", json={"prompt": "p", "n": 99}),
        site.get("/jobs/1"),
    ]
    statuses = [answer.status_code for answer in answers]
    assert statuses in ([200, status, 200, 400, 404] for status in (200, 202))  # a job that has ended is a 200
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "Origin" in answer.headers["vary"]
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        sent = {name for name in answer.headers if not name.startswith("access-control-")}
        assert sent - common - policies - {"content-encoding"} <= exposed


def test_a_refused_call_says_why_to_the_page(served: Any, serving: Serving, keys: Any) -> None:
    with serving(served.settings.model_copy(update={"cors_origins": (SITE,), **keys("sesame")})) as api:
        answer = httpx.post(f"{api.url}/generate", json=BODY, headers={"Origin": SITE}, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authorized")
    assert answer.headers["access-control-allow-origin"] == SITE


def test_an_event_source_of_another_origin_is_served(site: httpx.Client) -> None:
    job = site.post("/generate", json=BODY, headers={"Prefer": "respond-async"}).headers["location"]
    with connect_sse(site, "GET", f"{job}/events") as source:
        assert source.response.headers["access-control-allow-origin"] == SITE
        assert [event.event for event in source.iter_sse()][-1] == "result"


def test_no_other_origin_is_served_and_none_by_default(site: httpx.Client, served: Any) -> None:
    keyless = "Authorization" not in site.headers
    answer = site.post("/generate", json=BODY, headers={"Origin": EVIL})
    assert answer.status_code == (403 if keyless else 200)
    assert "access-control-allow-origin" not in answer.headers
    plain = httpx.post(f"{served.url}/generate", json=BODY, headers={"Origin": SITE}, timeout=PATIENCE)
    assert (plain.status_code, "BESTOFN_CORS_ORIGINS" in plain.json()["detail"]) == (403, True)
    assert httpx.options(f"{served.url}/generate", headers=PREFLIGHT | {"Origin": SITE}).status_code >= 400


def test_all_origins_are_a_star(served: Any, serving: Serving) -> None:
    with serving(served.settings.model_copy(update={"cors_origins": ("*",)})) as api:
        answer = httpx.post(f"{api.url}/generate", json=BODY, headers={"Origin": EVIL}, timeout=PATIENCE)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        rebound = httpx.get(f"{api.url}/status", headers={"Origin": EVIL, "Host": "evil.example"}, timeout=PATIENCE)
        assert rebound.status_code == 403


@pytest.mark.parametrize("origin", ["https://shop.example/", "shop.example", "https://*.example", ""])
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=(origin,))
