"""The page, used as people use it."""

import re
import zipfile

import httpx
from PIL import Image

from tests.waiting import PATIENCE

STAR = "a photo of a red star"


def ask(page, prompt: str, samples: int) -> None:
    """Type a prompt and a number of candidates, and press Enter."""
    page.goto("/")
    page.fill("#num_samples", str(samples))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def judged(page) -> int:
    if page.locator("#all").is_visible():
        page.locator("#all").click()
        page.locator("#all").wait_for(state="hidden")  # the next frame draws the others
    return page.locator(".tile:not(:disabled)").count()


def wait_for(page, status: str) -> None:
    page.locator(f"#job[data-status={status}]").wait_for()


def job_of(page, api) -> dict:
    job = re.search(r"#job=(\w+)", page.url)[1]
    return httpx.get(f"{api.url}/jobs/{job}?limit=4096", timeout=PATIENCE).raise_for_status().json()


def test_a_prompt_fills_the_page_and_every_image_opens(page, api, hold):
    hold.after(8)
    ask(page, STAR, 48)
    page.locator(".tile:not(:disabled)").nth(3).wait_for()
    assert 0 < judged(page) < 48
    assert page.locator("#go").inner_text() == "Cancel"
    page.locator(".bracket .leads").first.wait_for()
    hold.end()
    wait_for(page, "succeeded")
    result = job_of(page, api)
    winner = result["images"][0]
    assert page.locator("#winner-actions").is_visible()
    assert f"{winner['verdict']['p_yes']:.3f}" == page.locator("#score").inner_text()
    assert str(winner["seed"]) in page.locator("#leader-pairs").inner_text()
    assert judged(page) == 48
    assert "47 of 47 matches" in page.locator("#knockout-facts").inner_text()
    assert f"won with score {winner['verdict']['p_yes']:.3f}" in page.locator("#announcer").inner_text()
    ranks = [int(text) for text in page.locator(".tile .label i").all_inner_texts()]
    assert ranks == list(range(1, 49))

    page.locator("#earlier summary").click()
    page.locator("#earlier li").nth(23).wait_for()
    assert page.locator("#earlier li").count() == 24

    page.locator(".tile").nth(1).click()
    second = next(candidate for candidate in result["candidates"] if candidate["rank"] == 2)
    assert page.locator("#viewer-rank").text_content() == "Rank 2 of 48"
    assert f"manual_seed({second['seed']})" in page.locator("#viewer-call").inner_text()
    assert "winners only" in page.locator("#viewer-note").inner_text()
    page.locator("#viewer-image[src^=blob]").wait_for()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-title").inner_text() == f"The winner, candidate {winner['candidate']}"
    with page.expect_download() as download:
        page.locator("#viewer-download").click()
    assert download.value.suggested_filename == f"a-photo-of-a-red-star-{winner['seed']}.png"
    assert download.value.path().read_bytes() == httpx.get(f"{api.url}{winner['url']}", timeout=PATIENCE).content
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_hidden()

    page.goto("/")
    page.locator("#history-list img").wait_for()
    page.locator("#history-list button").click()
    wait_for(page, "succeeded")
    assert page.locator("#score").inner_text() == f"{winner['verdict']['p_yes']:.3f}"


def test_page_draws_where_the_browser_stores_nothing(page, api):
    refusal = "get() { throw new DOMException('denied', 'SecurityError'); }"
    page.add_init_script(f"Object.defineProperty(window, 'localStorage', {{ {refusal} }})")
    ask(page, STAR, 4)
    wait_for(page, "succeeded")


def test_escape_cancels(page, api, hold):
    hold.after(4)
    ask(page, STAR, 256)
    page.locator(".tile:not(:disabled)").first.wait_for()
    page.keyboard.press("Escape")
    wait_for(page, "canceled")
    assert job_of(page, api)["status"] == "canceled"
    assert "Canceled after" in page.locator("#progress-text").inner_text()
    assert page.locator("#go").inner_text() == "Generate"


def test_a_reload_in_mid_job_resumes(page, api, hold):
    hold.after(12)
    ask(page, STAR, 96)
    page.locator(".tile:not(:disabled)").nth(9).wait_for()
    page.reload()
    page.locator("#job[data-status=running]").wait_for()
    hold.end()
    assert page.input_value("#prompt") == STAR
    wait_for(page, "succeeded")
    assert len(job_of(page, api)["candidates"]) == judged(page) == 96
    assert page.locator("#history-list li").count() == 0  # the job that is shown is not listed
    page.goto("/")
    page.locator("#history-list img").wait_for()
    assert page.locator("#history-list li").count() == 1


def test_a_server_that_comes_back_is_followed_on(page, data_dir, api, hold):
    hold.after(8)
    own = type(api)(api.settings)
    try:
        page.goto(own.url)
        page.fill("#num_samples", "64")
        page.fill("#prompt", STAR)
        page.press("#prompt", "Enter")
        page.locator(".tile:not(:disabled)").nth(5).wait_for()
        own.stop()
        page.get_by_text("The server does not answer. Trying again").wait_for()
        own.start()
        hold.end()
        wait_for(page, "succeeded")
        assert judged(page) == 64
        assert "63 of 63 matches" in page.locator("#knockout-facts").inner_text()
    finally:
        own.stop()


def test_the_keyboard_is_enough(page):
    page.goto("/")
    page.locator("#prompt:focus").wait_for()
    page.keyboard.type(STAR)
    page.keyboard.press("Enter")
    wait_for(page, "succeeded")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.locator(".tile:focus").count():
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    ninth = page.locator(".tile").nth(9).get_attribute("data-index")
    assert page.locator("#viewer-title").inner_text() == f"Candidate {ninth}"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    tenth = page.locator(".tile").nth(10).get_attribute("data-index")
    page.locator(f".tile[data-index='{tenth}']:focus").wait_for()
    assert page.locator(".tile:focus").evaluate("tile => getComputedStyle(tile).outlineStyle") == "solid"


def test_a_phone_in_the_dark(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    ask(page, f"{STAR} {'w' * 200}", 16)
    wait_for(page, "succeeded")
    page.locator("#more-button").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator(".tile").first.click()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    light, dark = (
        page.evaluate(f"getComputedStyle(document.documentElement).{name}") for name in ("color", "backgroundColor")
    )
    assert sum(map(int, re.findall(r"\d+", light))) > 600 > 100 > sum(map(int, re.findall(r"\d+", dark)))


def test_a_seed_is_kept_while_it_is_locked(page, api):
    ask(page, STAR, 4)
    wait_for(page, "succeeded")
    first = job_of(page, api)
    page.locator("#more-button").click()
    page.locator("#lock").click()
    page.locator("#go").click()
    page.wait_for_url(lambda url: first["id"] not in url)
    wait_for(page, "succeeded")
    again = job_of(page, api)
    assert again["parameters"]["seed"] == first["parameters"]["seed"]
    page.fill("#seed", str(2**63 - 4))
    page.locator("#go").click()
    page.wait_for_url(lambda url: again["id"] not in url)
    wait_for(page, "succeeded")
    assert job_of(page, api)["parameters"]["seed"] == 2**63 - 4
    assert "922337203685477580" in page.locator("#leader-pairs").inner_text()


def test_page_shows_refusals_at_the_prompt_box(page):
    for prompt, said in (
        (" ", "Say what the image should show"),
        ("word " * 310, "shorten it by"),
        ("this heat fails", "The job failed: "),
    ):
        ask(page, prompt, 4)
        page.locator("#problem", has_text=said).wait_for()
        assert page.locator("#go").inner_text() == "Generate"


def test_a_full_server_is_asked_again_until_escape(page, api, hold):
    hold.after(4)
    full = type(api)(api.settings.model_copy(update={"max_queued_candidates": 64}))
    try:
        ask(page, STAR, 64)
        page.locator("#job").wait_for()
        page.goto(full.url)
        page.locator("#example-list button").first.click()
        page.locator("#problem", has_text="Trying again in").wait_for()
        assert page.locator("#go").inner_text() == "Cancel"
        page.keyboard.press("Escape")
        page.locator("#go", has_text="Generate").wait_for()
        assert page.locator("#problem").is_hidden()
    finally:
        full.stop()


def test_a_server_with_keys_is_asked_with_one(page, keyed_api):
    page.goto(keyed_api.url)
    page.locator("#key-dialog[open]").wait_for()
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    page.locator("#example-list button").first.click()
    wait_for(page, "succeeded")
    page.locator(".tile img").nth(15).wait_for()
    page.locator("#spending label", has_text="Low").click()
    page.locator("#go").click()
    page.locator("#cost", has_text="Expected").wait_for()
    wait_for(page, "succeeded")


def test_a_job_that_is_gone_can_be_drawn_again(page):
    page.goto("/")
    entry = {"id": "dead", "time": 0, "prompt": STAR, "count": 4}
    entry["parameters"] = {
        "prompt": STAR,
        "num_samples": 4,
        "top_k": 2,
        "seed": "77",
        "negative_prompt": "",
        "num_inference_steps": 4,
    }
    page.evaluate("entry => localStorage.setItem('bestofn.history', JSON.stringify([entry]))", entry)
    page.reload()
    page.locator("#history-list button").click()
    page.locator("#problem", has_text="no longer on the server").wait_for()
    page.keyboard.press("Enter")
    wait_for(page, "succeeded")
    assert page.locator("#winners button").count() == 1
    assert int(page.input_value("#seed")) == 77


def test_a_job_picked_before_the_models_are_known_is_read_once(page):
    page.goto("/")
    entry = {"id": "dead", "time": 0, "prompt": STAR, "count": 4, "parameters": {"num_samples": 4}}
    page.evaluate("entry => localStorage.setItem('bestofn.history', JSON.stringify([entry]))", entry)
    models = []
    page.route("**/v1/models", lambda call: models.append(call))
    page.reload()
    page.locator("#history-list button").click()
    page.locator("#problem", has_text="no longer on the server").wait_for()
    page.route("**/jobs/dead*", lambda call: None)  # stays without an answer
    models[0].continue_()
    page.locator("#examples button").first.wait_for()
    assert page.locator("#go").inner_text() == "Generate"


def test_images_that_a_person_has_are_ranked(page, api, tmp_path):
    files = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(file := tmp_path / f"{number}.png")
        files.append(file)
    page.goto("/")
    page.fill("#prompt", STAR)
    page.click("#more-button")
    page.set_input_files("#pictures", files[:1])
    page.click("#go")
    page.get_by_text("Choose 2 to 64 images, not 1.").wait_for()
    page.set_input_files("#pictures", files)
    assert "3 images to rank" in page.locator("#sent").inner_text()
    assert page.locator("#go").inner_text() == "Rank"
    page.click("#go")
    wait_for(page, "succeeded")
    assert judged(page) == 3
    winner = job_of(page, api)["images"][0]
    assert winner["name"] in page.locator("#leader-pairs").inner_text()
    assert "2 of 2 matches" in page.locator("#knockout-facts").inner_text()
    assert page.locator("#remake").is_hidden()
    page.reload()
    wait_for(page, "succeeded")
    assert page.input_value("#prompt") == STAR
    assert page.locator("#go").inner_text() == "Generate"


def test_all_candidates_are_downloaded_as_a_zip_and_as_a_sheet(page, api):
    ask(page, STAR, 20)
    wait_for(page, "succeeded")
    result = job_of(page, api)
    with page.expect_download() as download:
        page.locator("#download-all").click()
    assert download.value.suggested_filename == "a-photo-of-a-red-star-all.zip"
    with zipfile.ZipFile(download.value.path()) as files:
        assert files.testzip() is None
        names = files.namelist()
        ranked = sorted(result["candidates"], key=lambda candidate: candidate["rank"])
        assert [re.match(r"(\d+)-candidate-(\d+)-seed-(\d+)\.", name).groups() for name in names] == [
            (f"{one['rank']:04}", str(one["index"]), str(one["seed"])) for one in ranked
        ]
        winner = httpx.get(f"{api.url}{result['images'][0]['url']}", timeout=PATIENCE).content
        assert (names[0].endswith(".png"), files.read(names[0])) == (True, winner)
        small = httpx.get(f"{api.url}{ranked[-1]['thumbnail']}", timeout=PATIENCE).content
        assert (names[-1].endswith(".webp"), files.read(names[-1])) == (True, small)
    page.locator("#announcer:text('The download is ready')").wait_for(state="attached")
    with page.expect_download() as download:
        page.locator("#download-sheet").click()
    assert download.value.suggested_filename == "a-photo-of-a-red-star-sheet.png"
    with Image.open(download.value.path()) as sheet:
        assert (sheet.format, sheet.width) == ("PNG", 1600)
        assert len(sheet.convert("RGB").resize((400, 400)).getcolors(2**18)) > 100  # images, and not grey cards alone


def test_prompt_is_shown_twice_at_most(page):
    ask(page, STAR, 4)
    wait_for(page, "succeeded")
    page.locator("#announcer:text('Done')").wait_for(state="attached")
    assert page.locator("body").inner_text().count(STAR) == 1  # and in the field
    used, ended = (page.locator("#cost div", has_text=term).bounding_box() for term in ("Used", "Ended"))
    assert used["y"] == ended["y"]
    assert 0 < ended["x"] - used["x"] - used["width"] < 100
