"""The page's files: open to all, under a policy that keeps them to this server."""

import re

import httpx
import pytest

from bestofn.service.api.routes.web import FOLDER, PATHS
from tests.waiting import PATIENCE


@pytest.fixture
def caller(keyed_api):
    with httpx.Client(base_url=keyed_api.url, timeout=PATIENCE) as client:
        yield client


def test_the_page_needs_no_key_and_everything_else_does(caller):
    for path in PATHS:
        assert caller.get(path).status_code == 200, path
    assert caller.get("/v1/models").status_code == 401
    assert caller.get("/page/../api/app.py").status_code in (401, 404)
    assert caller.get("/page/nothing.js", headers={"Authorization": "Bearer sesame"}).json()["code"] == "not_found"


def test_the_page_may_talk_to_this_server_only_and_is_fresh_after_an_upgrade(caller):
    answer = caller.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache"
    assert caller.get("/", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert caller.head("/").status_code == 200


@pytest.mark.parametrize(("path", "ready"), [("/docs", "#operations-Jobs-generate"), ("/redoc", "h1")])
def test_the_description_needs_no_key_and_reaches_no_other_server(browser, keyed_api, path, ready):
    page = browser.new_page(base_url=keyed_api.url)
    page.set_default_timeout(1000 * PATIENCE)
    answered: list[str] = []
    page.on("response", lambda answer: answered.append(answer.url))  # Redoc asks for its logo, which is refused
    page.goto(path)
    page.locator(ready, has_text="generate" if path == "/docs" else "bestofn").wait_for()
    page.wait_for_load_state("networkidle")
    page.close()
    assert f"{keyed_api.url}/openapi.json" in answered
    assert all(url.startswith((keyed_api.url, "blob:", "data:")) for url in answered), answered


def test_no_file_names_another_server():
    for file in FOLDER.iterdir():
        found = set(re.findall(r"https?://[^\s\"')]+", file.read_text(encoding="utf-8")))
        assert found <= {"http://www.w3.org/2000/svg"}, f"{file.name} names {found}"
