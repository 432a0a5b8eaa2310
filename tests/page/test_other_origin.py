"""A page of another origin in a real browser: examples/browser.html, over a server that asks for a key."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.conftest import Api
from tests.waiting import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "examples"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The origin of a server of the examples: another port is another origin."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(EXAMPLES)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("named", "key"), [(True, "sesame"), (True, "wrong"), (False, "sesame")])
def test_the_example_page_of_another_origin(browser, keyed_api: Api, site: str, named: bool, key: str) -> None:
    api = Api(keyed_api.settings.model_copy(update={"cors_origins": (site,) if named else ()}))
    context = browser.new_context()
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{site}/browser.html")
        page.get_by_label("Server").fill(api.url)
        page.get_by_label("Key").fill(key)
        page.get_by_role("button").click()
        status = page.get_by_role("status")
        if not named:
            status.filter(has_text="Failed to fetch").wait_for()  # the browser's own words
        elif key == "wrong":
            status.filter(has_text="not one of this server's").wait_for()
        else:
            status.filter(has_text=re.compile(r"seed \d+, score [01]\.")).wait_for()
            assert (
                page.locator("img").evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
            )
    finally:
        context.close()
        api.stop()
