"""Finals, a second judge and fewer layers: offered where they are deployed, and shown as they were decided."""

import re

import httpx
import pytest

from tests.page.conftest import WORKER, queue_and_worker, ready_api, visit, working
from tests.service.pairwise.vision_server import vision_server
from tests.waiting import PATIENCE, until

STAR = "a photo of a red star"


@pytest.fixture(scope="module")
def vision():
    with vision_server() as server:
        yield server


@pytest.fixture(scope="module")
def judged_api(vision):
    """An API over a worker with a second judge and one for finals."""
    with (
        queue_and_worker("-c", WORKER, "second", BESTOFN_PAIRWISE_JUDGE=vision.url) as folder,
        ready_api(folder) as served,
    ):
        yield served


def test_page_offers_only_deployed_finals(page, api):
    page.goto("/")
    page.locator("#more-button").click()
    page.locator("#steps-field").wait_for()
    assert page.locator("#depth").is_visible()  # the model's blocks have their order
    for control in ("#finals", "#second"):
        assert page.locator(control).is_hidden()
    # Nor are they asked for where a job of another day had them.
    page.evaluate("for (const id of ['finals', 'second']) document.getElementById(id).checked = true")
    page.fill("#num_samples", "4")
    page.fill("#depth", "5")
    page.fill("#prompt", STAR)
    page.keyboard.press("Enter")
    page.locator("#problem", has_text="Layers: a whole number from 1 to 4.").wait_for()
    assert page.locator("#depth[aria-invalid=true]:focus").count() == 1
    page.fill("#depth", "3")
    page.keyboard.press("Enter")
    page.locator("#job[data-status=succeeded]").wait_for()
    assert "3 layers" in page.locator("#job-facts").inner_text()
    parameters = httpx.get(f"{api.url}/jobs/{page.url.partition('=')[2]}", timeout=PATIENCE).json()["parameters"]
    assert (parameters["depth"], parameters["rule"], parameters["finals"]) == (3, "margin", None)


def test_page_follows_finals_and_shows_both_answers_of_every_match(browser, judged_api, vision):
    with visit(browser, judged_api) as page:
        page.goto("/")
        page.locator("#more-button").click()
        page.locator("#finals").check()
        page.fill("#finals_max_entrants", "5")
        page.fill("#finals_margin", "50")
        page.locator("#second").check()
        page.fill("#seed", "3")
        page.fill("#prompt", STAR)
        vision.pause.clear()
        page.locator("#go").click()
        page.get_by_text("Finals: 0 of 4 matches played").first.wait_for()
        assert page.locator("#finals-rounds h3").all_inner_texts() == ["Meeting now"]
        assert page.locator("#finals-rounds button").count() == 5
        assert page.locator("#progress-bar").get_attribute("value") == "0"
        vision.pause.set()
        page.locator("#job[data-status=succeeded]").wait_for()
        job = httpx.get(f"{judged_api.url}/jobs/{page.url.partition('=')[2]}", timeout=PATIENCE).json()
        winner, finals = job["images"][0], job["finals"]
        assert page.locator("#finals-rounds h3").all_inner_texts() == ["Round 1", "Round 2", "Final"]
        words = page.locator("#finals-rounds b").all_inner_texts()
        matches = [match for round in finals["rounds"] for match in round]
        ways = [f"#{m['winner']} beats" if m["b"] is not None else f"#{m['a']} waits" for m in matches]
        assert [text.startswith(way) for text, way in zip(words, ways, strict=True)] == [True] * 6
        assert page.locator("#finals-facts").inner_text().startswith("4 matches before looker")
        assert f"candidate {winner['candidate']} won the finals" in page.locator("#progress-text").text_content()
        assert page.locator("#finals-rounds section").last.locator("button:not(.lost)").count() == 1
        assert "judges fake-judge and fake-second" in page.locator("#job-facts").inner_text()

        page.locator("#finals-rounds section").last.locator("button:not(.lost)").click()
        shown = page.locator("#viewer-pairs").inner_text()
        second = winner["verdict"]["second"]
        assert f"Second judge\n{second['answer']}" in shown
        assert f"yes {second['yes_logit']:.2f}, no {second['no_logit']:.2f}" in shown

        page.reload()
        page.locator("#job[data-status=succeeded]").wait_for()
        assert page.locator("#finals-rounds b").all_inner_texts() == words
        assert page.locator("#finals").is_checked()
        assert (page.input_value("#finals_max_entrants"), page.input_value("#finals_margin")) == ("5", "50")
        assert page.locator("#second").is_checked()

        vision.mode = "first"  # in love with a place: every match is a draw
        page.locator("#go").click()
        page.locator("#finals-rounds b", has_text=re.compile("draw$")).nth(3).wait_for()
        said = page.locator("#finals-rounds small").last.inner_text()
        a, b = re.match(r"with #(\d+) first the judge named #\1, with #(\d+) first #\2; #\1 goes on", said).groups()
        assert a != b
        vision.mode = "looks"


def test_page_refuses_a_choice_that_no_worker_has_together(browser, vision):
    with (
        queue_and_worker("-c", WORKER, "second") as folder,
        working(folder, "-c", WORKER, BESTOFN_PAIRWISE_JUDGE=vision.url),
        ready_api(folder) as api,
        visit(browser, api) as page,
    ):
        until(lambda: len(httpx.get(f"{api.url}/status", timeout=PATIENCE).json()["workers"]) == 2)
        page.goto("/")
        page.locator("#more-button").click()
        for one, other in (("#finals", "#second"), ("#second", "#finals")):
            page.locator(one).check()
            assert page.locator(other).is_disabled()
            assert "no worker here has both" in page.locator(f"{other}-apart").inner_text()
            page.locator(one).uncheck()
            assert page.locator(other).is_enabled()
            assert page.locator(f"{other}-apart").is_hidden()
        # Where the page does not know that workers have gone.
        page.locator("#finals").check()
        page.evaluate(
            "second => Object.assign(second, { disabled: false, checked: true })", page.query_selector("#second")
        )
        page.fill("#prompt", STAR)
        page.locator("#go").click()
        page.locator("#problem", has_text="No worker can count what two judges accept any more, or not with").wait_for()
        assert page.locator("#second[aria-invalid=true]:focus").count() == 1

        page.locator("#second").uncheck()
        page.locator("#finals").uncheck()
        page.locator("#second").check()
        page.locator("#draft").check()
        page.fill("#draft_steps", "2")
        page.fill("#draft_depth", "5")
        page.locator("#go").click()
        page.locator("#problem", has_text="Layers of a draft: a whole number from 1 to 4.").wait_for()
        page.fill("#draft_depth", "3")
        page.locator("#go").click()
        page.locator("#job[data-status=succeeded]").wait_for()
        parameters = httpx.get(f"{api.url}/jobs/{page.url.partition('=')[2]}", timeout=PATIENCE).json()["parameters"]
        assert (parameters["rule"], parameters["finals"]) == ("lower_bound", None)
        assert (parameters["draft"]["num_inference_steps"], parameters["draft"]["depth"]) == (2, 3)
        page.locator(".tile.drafted").first.click()
        assert page.locator("#viewer-note").inner_text().startswith("Only a draft, in 2 steps and 3 layers.")
        page.reload()
        page.locator("#job[data-status=succeeded]").wait_for()
        assert page.input_value("#draft_depth") == "3"
