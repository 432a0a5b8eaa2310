"""How compute is spent: chosen on the page, planned before the answer, billed after it."""

import re

import httpx
import pytest

from tests.waiting import PATIENCE

STAR = "a photo of a red star left of a blue circle"


def said(page) -> dict[str, str]:
    """The terms of the list of costs, and what is said of each, with plain spaces."""
    terms = page.locator("#cost dt").all_inner_texts()
    return dict(
        zip(terms, (" ".join(text.split()) for text in page.locator("#cost dd").all_inner_texts()), strict=True)
    )


def finished(page, api) -> dict:
    page.locator("#job[data-status=succeeded]").wait_for()
    job = re.search(r"#job=(\w+)", page.url)[1]
    return httpx.get(f"{api.url}/jobs/{job}", timeout=PATIENCE).raise_for_status().json()


def number(text: str) -> float:
    return float(re.search(r"[\d,.]*\d", text)[0].replace(",", ""))


def test_an_effort_shows_its_plan_then_its_bill_and_why_it_ended(shapes_page, shapes_api):
    page = shapes_page
    page.goto("/")
    page.fill("#prompt", STAR)
    page.locator("#spending input[value=own]").focus()
    for _ in range(4):  # past the budget, max and high
        page.keyboard.press("ArrowLeft")
    assert page.locator("#own-field").is_hidden()
    page.locator("#prompt").press("Enter")
    page.locator("#cost", has_text="Expected").wait_for()
    before = said(page)
    assert set(before) == {"Plan", "Expected"}
    eyebrow = page.locator("#job-eyebrow").text_content()

    job = finished(page, shapes_api)
    assert "effort" not in job["parameters"], "the job has what was chosen"
    plan, usage = job["plan"], job["usage"]
    after = said(page)
    assert {term: after[term] for term in before} == before
    most, stop, draft = plan["num_samples"], plan["stop"], plan["draft"]
    drafts = draft and f", drafts of {draft['num_inference_steps']} steps, the best {100 * draft['keep']:.3g} % in full"
    sure = f", until the judge is {100 * stop['confidence']:g} % sure"
    assert before["Plan"] == f"At most {most} candidates{drafts or ''}{sure}"
    assert f"at most {most}" in eyebrow
    assert number(before["Expected"]) == pytest.approx(plan["expected_tflops"], rel=0.01)
    assert number(after["Used"]) == pytest.approx(usage["tflops"], rel=0.01)
    drawn = usage["candidates"]
    if job["stopped"] == "confident":
        assert after["Ended"].startswith(f"After {drawn} candidates: enough")
    else:
        assert after["Ended"].startswith(f"All {most} candidates are judged")
    assert f"{100 * job['confidence']:.1f}".removesuffix(".0") + " % sure of the winner" in after["Ended"]
    assert len(job["candidates"]) == drawn == page.locator(".tile:not(:disabled)").count()

    page.reload()
    finished(page, shapes_api)
    assert said(page) == after
    assert page.locator("#spending input:checked").get_attribute("value") == "medium"
    page.locator("#home").click()
    page.locator("#history-list", has_text=f"{drawn} candidates").wait_for()


def test_drafts_and_a_stop_of_ones_own(shapes_page, shapes_api):
    page = shapes_page
    page.goto("/")
    page.fill("#prompt", STAR)
    page.locator("#more-button").click()
    page.locator("#stop").check()
    page.fill("#confidence", "60")
    page.locator("#draft").check()
    page.fill("#draft_keep", "25")
    page.keyboard.press("Enter")
    job = finished(page, shapes_api)
    parameters = job["parameters"]
    assert parameters["stop"] == {"confidence": 0.6, "min_samples": 4, "patience": 64}
    assert parameters["draft"] == {"num_inference_steps": 4, "keep": 0.25}
    assert set(said(page)) == {"Used", "Ended"}
    drafted = sum(not candidate["solved_in_full"] for candidate in job["candidates"])
    assert page.locator(".tile.drafted").count() == drafted >= 6
    assert f"{len(job['candidates']) - drafted} candidates" in page.locator("#knockout-facts").inner_text()
    page.locator(".tile.drafted").first.click()
    assert page.locator("#viewer-note").inner_text().startswith("Only a draft, in 4 steps.")


@pytest.mark.parametrize(
    ("fill", "control", "text"),
    [
        ({"#num_samples": "5000"}, "num_samples", "Candidates: a whole number from 1 to 4,096."),
        ({"#stop": True, "#confidence": "100"}, "confidence", "How sure: above 0 and below 100 %."),
        ({"#draft": True, "#draft_steps": "4"}, "draft_steps", "The steps of a draft must be fewer than the 4"),
        ({"#draft": True, "#draft_keep": "0"}, "draft_keep", "Above 0 and at most 100 %."),
        ({"Budget": True, "#budget": ""}, "budget", "Say how much the job may cost"),
        ({"Budget": True, "#budget": "0.001", "unit": "tflops"}, "budget", "The budget pays for 0.001 TFLOP, but one"),
        ({"Max": True, "Quick": True}, None, None),
        ({"Low": True, "#top_k": "16"}, "top_k", "The number of winners must be at most"),
    ],
    ids=str,
)
def test_page_shows_a_fault_at_its_control_and_focuses_it(page, fill, control, text):
    page.goto("/")
    page.locator("#steps-field").wait_for(state="attached")
    page.locator("#more-button").click()
    page.fill("#prompt", "a photo of a star")
    for name, value in fill.items():
        if name == "unit":
            page.select_option("#budget-unit", value)
        elif not name.startswith("#"):
            page.locator(".segments label", has_text=name).click()
        elif value is True:
            page.check(name)
        else:
            page.fill(name, value)
    page.locator("#go").click()
    if control is None:
        return page.locator("#job[data-status=succeeded]").wait_for()
    page.locator("#problem", has_text=text).wait_for()
    wrong = page.locator(f"#{control}[aria-invalid=true][aria-describedby=problem]:focus")
    assert wrong.count() == 1
    box, problem = wrong.bounding_box(), page.locator("#problem").bounding_box()
    assert 0 <= problem["y"] - (box["y"] + box["height"]) < 30
    page.fill("#prompt", "a photo of a ring")
    assert page.locator("#problem").is_hidden()
    assert page.locator("[aria-invalid]").count() == 0
