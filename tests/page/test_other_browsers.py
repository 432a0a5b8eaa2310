"""The page in Firefox and in WebKit."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.page.conftest import Api, Hold
from tests.page.webdriver import ENTER, Window, missing, opened
from tests.waiting import PATIENCE, until

READY = "!document.querySelector('#steps-field').hidden"
ENDED = "document.querySelector('#job[data-status=succeeded]') && document.querySelector('#score').innerText"
DRAWN = "document.querySelectorAll('#grid .tile:not(:disabled)').length"
COLLECT = """(window.wrong = [], console.error = (...said) => wrong.push(said.join(' ')),
    addEventListener('error', (event) => wrong.push(event.message), true),
    addEventListener('unhandledrejection', (event) => wrong.push(String(event.reason))))"""
PROBLEM = "document.querySelector('#problem').innerText"


@pytest.fixture(params=["firefox", "webkit"])
def window(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Window]:
    if os.environ.get("CI"):
        pytest.skip("the page is tested in a browser on developers' machines, not in CI")
    if (reason := missing(request.param)) is not None:
        pytest.skip(reason)
    with opened(request.param, tmp_path) as one:
        yield one


def visit(window: Window, address: str) -> None:
    """Open the page and wait until it knows the models; WebKit does not wait for its modules."""
    window.goto(address)
    window.wait(READY)


def test_job_is_drawn_and_opened_again_by_its_address(window: Window, api: Api) -> None:
    visit(window, api.url)
    window.type("#num_samples", "8")
    window.type("#prompt", f"a red star{ENTER}")
    score = window.wait(ENDED)
    address = window.evaluate("location.href")
    window.goto("about:blank")
    window.goto(address)
    assert window.wait(ENDED) == score
    assert window.evaluate(DRAWN) == 8


def test_text_that_is_no_number_is_a_fault_at_its_control(window: Window, api: Api) -> None:
    visit(window, api.url)
    window.type("#prompt", "a red star")
    window.type("#num_samples", f"1,024{ENTER}")
    assert "This is not a number" in window.wait(PROBLEM)
    assert window.evaluate("document.activeElement.id") == "num_samples"


def test_job_is_followed_over_an_api_that_restarts(window: Window, api: Api, hold: Hold) -> None:
    visit(window, api.url)
    hold.after(4)
    window.type("#num_samples", "24")
    window.type("#prompt", f"a red star{ENTER}")
    window.wait(DRAWN)
    api.stop()
    window.wait("document.body.innerText.includes('The server does not answer. Trying again')")
    api.start()
    hold.end()
    window.wait(ENDED)
    assert window.evaluate(DRAWN) == 24


def test_files_of_a_job_are_those_of_the_api_and_nothing_goes_wrong(window: Window, api: Api, tmp_path: Path) -> None:
    window.goto(api.url)
    window.evaluate(COLLECT)
    window.wait(READY)
    window.evaluate("document.body.style.width = '400px'")  # the empty tree is planted again
    window.wait("document.querySelector('#ghost svg')?.getBoundingClientRect().width < 400")
    window.type("#num_samples", "8")
    window.type("#prompt", f"a red star{ENTER}")
    window.wait(ENDED)
    window.wait("!document.querySelector('#download').hidden")
    for name in ("download", "download-all", "download-sheet"):
        window.evaluate(f"document.querySelector('#{name}:not(:disabled)').click()")
    job = httpx.get(f"{api.url}/jobs/{window.evaluate('location.hash.slice(5)')}", timeout=PATIENCE).json()
    winner = httpx.get(f"{api.url}{job['images'][0]['url']}", timeout=PATIENCE).content
    image = f"a-red-star-{job['images'][0]['seed']}.png"
    for name in (image, "a-red-star-all.zip", "a-red-star-sheet.png"):
        found = until(lambda name=name: next((file for file in tmp_path.rglob(name) if file.stat().st_size), None))
        if name.endswith(".zip"):
            until(lambda file=found: zipfile.is_zipfile(file))
            with zipfile.ZipFile(found) as files:
                assert len(files.namelist()) == 8
                assert files.read(files.namelist()[0]) == winner
    assert next(tmp_path.rglob(image)).read_bytes() == winner
    assert window.evaluate("wrong") == []
