"""Addresses of pictures that need no key: of one picture, for a while, and of nothing else."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from bestofn.service.api.access import VALID_SECONDS, check_signature, sign
from bestofn.service.core.errors import NotAuthorized
from bestofn.service.core.settings import Settings
from tests.service.api.test_api_keys import bearer
from tests.waiting import PATIENCE

SECRET, PATH = b"secret", "/jobs/3f9a/images/1"
Serving = Callable[[Settings], AbstractContextManager[Any]]


@pytest.mark.parametrize(("started", "valid"), [(0.0, 2), (VALID_SECONDS - 1.0, 1)])
def test_address_is_valid_for_one_to_two_hours_and_the_same_meanwhile(started: float, valid: int) -> None:
    path, _, query = sign(SECRET, PATH, started).partition("?")
    scope = {"path": path, "query_string": query.encode()}
    check_signature(SECRET, scope, started + valid * VALID_SECONDS)
    with pytest.raises(NotAuthorized, match="has expired: read the job again"):
        check_signature(SECRET, scope, started + valid * VALID_SECONDS + 2)
    assert sign(SECRET, PATH, 0) == sign(SECRET, PATH, VALID_SECONDS - 1)


def test_address_opens_its_picture_without_a_key_and_nothing_else(served: Any, serving: Serving, keys: Any) -> None:
    with (
        serving(served.settings.model_copy(update=keys("ali", "bea"))) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE) as http,
    ):
        body = {"prompt": "a red star", "num_samples": 4, "top_k": 2}
        job, other = (http.post("/generate", json=body, headers=bearer("ali")).json() for _ in range(2))
        first, second = (image["url"] for image in job["images"])
        bare, _, query = first.partition("?")
        png = http.get(first)
        assert png.content == http.get(bare, headers=bearer("ali")).content
        assert http.head(second).status_code == 200
        refused = {
            bare: "wants a key",
            first[:-1] + ("0" if first[-1] != "0" else "1"): "not this server's",
            first.replace("expires=1", "expires=9"): "not this server's",
            f"{bare}?signature=": "not this server's",
            f"{second.partition('?')[0]}?{query}": "not this server's",
            f"{other['images'][0]['url'].partition('?')[0]}?{query}": "not this server's",
            f"{bare.partition('/images')[0]}?{query}": "wants a key",
        }
        for address, said in refused.items():
            answer = http.get(address)
            assert answer.status_code == 401, address
            assert said in answer.json()["detail"]
        assert http.delete(first).status_code == 401
        assert http.get(first, headers=bearer("bea")).status_code == 404  # a key that is given decides
        theirs = http.post(
            "/v1/images/generations", json={"prompt": "p", "response_format": "url"}, headers=bearer("ali")
        )
        assert httpx.get(theirs.json()["data"][0]["url"], timeout=PATIENCE).status_code == 200
