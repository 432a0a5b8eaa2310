"""The page by axe-core: no serious finding in light, dark, forced colours, on a phone and with large text."""

import re
from pathlib import Path

import pytest

from tests.page.test_page import STAR, ask, job_of, wait_for

AXE = Path(__file__).parents[1] / "clients" / "node_modules" / "axe-core" / "axe.min.js"
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "forced colours": {"color_scheme": "dark", "forced_colors": "active"},
}
pytestmark = pytest.mark.skipif(
    not AXE.is_file(), reason="needs axe-core: npm install --prefix tests/clients --no-package-lock"
)


# A tile is named by a sentence; its numbers are in it, but not side by side as on the tile.
APART = ["label-content-name-mismatch"]


def findings(page, *without: str) -> list[str]:
    """Serious findings of axe's rules but `without`: "rule: element why"."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))  # the page's policy allows no script of another place
    rules = {rule: {"enabled": False} for rule in [*APART, *without]}
    found = page.evaluate("rules => axe.run({rules}).then(({violations}) => violations)", rules)
    return [
        f"{one['id']}: {one['nodes'][0]['target'][-1]} {one['nodes'][0]['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_nothing_serious(page, look: str, width: int) -> None:
    page.emulate_media(**LOOKS[look], reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 800})
    without = ["color-contrast"] if look == "forced colours" else []  # the system's, which axe does not see
    page.goto("/")
    page.click("#more-button")
    found = {"start": findings(page, *without)}
    ask(page, STAR, 48)
    wait_for(page, "succeeded")
    page.locator("#earlier summary").click()
    found["ended"] = findings(page, *without)
    page.locator(".tile").nth(1).click()
    page.locator("#viewer-image[src^=blob]").wait_for()
    found["viewer"] = findings(page, *without)
    assert found == {"start": [], "ended": [], "viewer": []}


def test_knockout_is_a_list_too(page) -> None:
    ask(page, STAR, 8)
    wait_for(page, "succeeded")
    matches = page.locator("#matches li")
    assert matches.count() == 7
    assert re.fullmatch(
        r"Round 3: candidate \d \([01]\.\d+\) beat candidate \d \([01]\.\d+\)", matches.last.inner_text()
    )


def test_a_candidate_is_drawn_in_full(page, api) -> None:
    ask(page, STAR, 8)
    wait_for(page, "succeeded")
    first = job_of(page, api)
    second = next(candidate for candidate in first["candidates"] if candidate["rank"] == 2)
    page.locator(".tile").nth(1).click()
    page.locator("#viewer-in-full").click()
    page.locator("#job-eyebrow:text('Best of 1')").wait_for()
    wait_for(page, "succeeded")
    alone = job_of(page, api)
    assert (alone["parameters"]["num_samples"], alone["images"][0]["seed"]) == (1, second["seed"])


def test_a_number_left_empty_is_the_usual_one(page) -> None:
    page.goto("/")
    page.fill("#num_samples", "7")
    page.fill("#num_samples", "")
    page.locator("#prompt").focus()
    assert page.locator("[name=quick-samples]:checked").input_value() == "16"


@pytest.mark.parametrize(("width", "text"), [(320, "100%"), (1280, "200%"), (820, "100%")])
def test_nothing_is_wider_than_the_window(page, width: int, text: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, STAR, 16)
    wait_for(page, "succeeded")
    page.evaluate("text => { document.documentElement.style.fontSize = text; }", text)
    page.click("#more-button")
    wider = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)"
    found = page.evaluate(f"{wider}.map((e) => `${{e.tagName}} ${{e.id}} ${{e.className}} ${{e.innerText ?? ''}}`)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, found


@pytest.mark.parametrize("colours", ["none", "active"])
def test_generate_is_in_the_row_of_the_choices_at_820_pixels(page, colours: str) -> None:
    page.emulate_media(forced_colors=colours)
    page.set_viewport_size({"width": 820, "height": 800})
    page.goto("/")
    tops = [page.locator(name).bounding_box()["y"] for name in ("#go", "#more-button")]
    assert abs(tops[0] - tops[1]) < 5


def test_states_of_a_job_are_announced_once_each_and_scores_are_not(page) -> None:
    page.goto("/")
    said = "announcer => { window.said = []; new MutationObserver(() => said.push(announcer.textContent))"
    page.locator("#announcer").evaluate(f"{said}.observe(announcer, {{childList: true}}); }}")
    page.fill("#num_samples", "64")
    page.fill("#prompt", STAR)
    page.press("#prompt", "Enter")
    page.locator("#announcer:text('Done')").wait_for(state="attached")
    page.locator("#download").wait_for()
    texts = page.evaluate("said")
    assert len(texts) == len(set(texts)) <= 8
    assert page.get_by_role("status").all_inner_texts() == [texts[-1]]


def test_paper_shows_the_job_dark_on_light_and_no_control(page) -> None:
    ask(page, STAR, 8)
    wait_for(page, "succeeded")
    page.emulate_media(media="print", color_scheme="dark")
    shown = [name for name in ("#score", "#leader-pairs", "#ask", "#remake") if page.locator(name).is_visible()]
    assert shown == ["#score", "#leader-pairs"]
    ink = page.locator("#score").evaluate("score => getComputedStyle(score).color")
    assert sum(map(int, re.findall(r"\d+", ink))) < 150
    page.emulate_media(media="screen")
    page.locator("#frame").click()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 300})
    assert page.locator("#viewer").evaluate(
        "viewer => viewer.scrollHeight === viewer.clientHeight"
    )  # the call is not cut
    assert page.locator("main").is_hidden()


def test_viewer_of_320_pixels_has_its_button_next_to_its_words(page) -> None:
    page.set_viewport_size({"width": 320, "height": 700})
    ask(page, STAR, 4)
    wait_for(page, "succeeded")
    page.locator(".tile").first.click()
    words, button = (page.locator(name).bounding_box() for name in (".code p", "#viewer-copy-call"))
    assert words["x"] + words["width"] <= button["x"]


def test_fields_have_an_edge_in_forced_colours(page) -> None:
    page.emulate_media(forced_colors="active")
    page.goto("/")
    page.click("#more-button")
    page.check("#stop")
    bare = "fields => fields.filter((field) => getComputedStyle(field).borderTopStyle === 'none').map(({id}) => id)"
    assert page.locator(".field > select, .line input[type=number], #key").evaluate_all(bare) == []
