"""The page in several tabs, in the background, on a slow network, and with an input method."""

from tests.page.test_page import STAR, ask, wait_for
from tests.waiting import until


def test_two_tabs_share_a_job_and_the_history(page, api, hold):
    hold.after(8)
    ask(page, STAR, 48)
    page.locator("#progress-text", has_text="8 of 48 judged").wait_for()
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#progress-text", has_text="8 of 48 judged").wait_for()
    other.click("#go")
    for tab in (page, other):
        tab.locator("#progress-text", has_text="Canceled after 8 of 48 candidates.").wait_for()
    hold.end()
    other.reload()  # its data is erased: neither a count nor an empty tree, and the prompt that this browser knows
    wait_for(other, "canceled")
    other.locator("#progress-text:text-is('Canceled.')").wait_for()
    assert other.title() == f"{STAR} · bestofn"
    assert other.input_value("#prompt") == STAR
    assert other.locator("#knockout").is_hidden()
    for tab in (page, other):
        tab.goto(api.url)
        tab.locator("#history-list button").wait_for()
    other.click("#clear-history")
    page.locator("#history").wait_for(state="hidden")


def test_key_that_is_forgotten_in_one_tab_is_forgotten_in_the_other(page, keyed_api):
    page.goto(keyed_api.url)
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    page.locator("#steps-field:not([hidden])").wait_for(state="attached")
    other = page.context.new_page()
    other.goto(keyed_api.url)
    other.click("#key-button")
    other.click("#key-forget")
    page.locator("#example-list button").first.click()
    page.locator("#key-dialog[open]").wait_for()


def test_title_of_a_tab_in_the_background_follows_the_job(page, hold):
    hold.after(8)
    page.add_init_script("window.requestAnimationFrame = () => 1")  # as there: no frame comes
    ask(page, STAR, 48)
    until(lambda: page.title() == "8/48 · bestofn")
    hold.end()
    until(lambda: page.title() == f"{STAR} · bestofn")


def test_keys_that_an_input_method_takes_neither_submit_nor_cancel(page, hold):
    hold.after(8)
    ask(page, STAR, 48)
    page.locator("#progress-text", has_text="8 of 48 judged").wait_for()
    keyboard = page.context.new_cdp_session(page)

    def press(key: str) -> None:
        keyboard.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": key, "windowsVirtualKeyCode": 229})

    page.focus("#prompt")
    press("Escape")
    assert page.locator("#announcer").text_content() != "Canceling"
    hold.end()
    wait_for(page, "succeeded")
    url = page.url
    press("Enter")
    assert page.locator("#go").inner_text() == "Generate"
    assert page.url == url


def test_download_waits_for_the_winner_itself(page):
    held = []
    page.route("**/images/1", lambda route: held.append(route))
    ask(page, STAR, 8)
    wait_for(page, "succeeded")
    until(lambda: page.title() and held)  # any call lets playwright see the request
    assert page.locator("#use-seed").is_visible()
    assert page.locator("#download").is_hidden()
    held[0].continue_()
    page.locator("#download:visible").wait_for()
    assert page.get_attribute("#download", "download").endswith(".png")


def test_image_that_failed_to_load_is_asked_for_again(page):
    failures = iter(("failed", 503))

    def fail_twice(route) -> None:
        match next(failures, None):
            case None:
                route.continue_()
            case "failed":
                route.abort()
            case status:
                route.fulfill(status=status)

    page.route("**/images/1", fail_twice)
    ask(page, STAR, 8)
    wait_for(page, "succeeded")
    page.locator("#download:visible").wait_for()
