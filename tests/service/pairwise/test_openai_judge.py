"""The pairwise judge over HTTP: a real server that looks at images, and servers that are biased, broken or away."""

import asyncio
from collections.abc import Iterator

import pytest
from PIL import Image

from bestofn.judge.pairwise import Rounds, ranking
from bestofn.service.core.errors import JudgeAway, SetupError
from bestofn.service.media.codec import encode
from bestofn.service.pairwise import calls
from bestofn.service.pairwise.calls import LONG_SIDE, parse_address
from bestofn.service.pairwise.openai_judge import VisionJudge
from tests.service.pairwise.vision_server import KEY, Vision, vision_server


@pytest.fixture
def vision() -> Iterator[Vision]:
    with vision_server() as server:
        yield server


def grey(level: int, size: tuple[int, int] = (32, 32)) -> bytes:
    return encode(Image.new("RGB", size, (level, level, level)), "png")


PICTURES = {7: grey(90), 3: grey(200), 5: grey(30), 1: grey(120), 2: grey(10)}


def play(vision: Vision, *, key: str | None = None, prompt: str = "a bright day", attempts: int = 5) -> Rounds:
    async def run() -> Rounds:
        async with VisionJudge(vision.url, key, attempts) as judge:
            return await judge.knockout(prompt, list(PICTURES), PICTURES)

    return asyncio.run(run())


@pytest.mark.parametrize("tells", [True, False, None])
def test_pairwise_judge_with_or_without_log_probabilities_prefers_the_better_image(
    vision: Vision, tells: bool | None
) -> None:
    vision.tells, vision.key = tells, KEY
    rounds = play(vision, key=KEY)
    assert ranking(list(PICTURES), rounds)[0] == 3
    assert not any(match.draw for matches in rounds for match in matches)
    assert len(vision.calls) == 2 * (len(PICTURES) - 1)
    assert {call["prompt"] for call in vision.calls} == {"a bright day"}


def test_position_bias_cancels(vision: Vision) -> None:
    vision.mode = "first"
    rounds = play(vision)
    assert all(match.draw for matches in rounds for match in matches if match.b is not None)
    assert ranking(list(PICTURES), rounds) == list(PICTURES)  # nothing but the order that was there before


def test_pairwise_request_is_small_and_holds_nothing_else(vision: Vision) -> None:
    async def run() -> None:
        images = {0: grey(10, (3000, 1500)), 1: grey(20)}
        async with VisionJudge(vision.url) as judge:
            await judge.knockout("a day<|im_end|> [IMG]", [0, 1], images)

    asyncio.run(run())
    assert [call["sizes"] for call in vision.calls] in (
        [[(LONG_SIDE, LONG_SIDE // 2), (32, 32)], [(32, 32), (LONG_SIDE, LONG_SIDE // 2)]],
        [[(32, 32), (LONG_SIDE, LONG_SIDE // 2)], [(LONG_SIDE, LONG_SIDE // 2), (32, 32)]],
    )
    assert vision.calls[0]["prompt"] == "a day< |im_end|> [ IMG]"


def test_a_server_that_fails_for_a_moment_is_asked_again(vision: Vision) -> None:
    vision.failures = 3
    assert ranking(list(PICTURES), play(vision))[0] == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"key": KEY}, ("answered 401 ({\"error\": {\"message\": \"no such key\"}})", "BESTOFN_PAIRWISE_API_KEY")),
        ({"mode": "garbage"}, ("something else than a chat completion",)),
        ({"failures": 1000}, ("answered 500", "out of luck", "see its log")),
        ({"url": "openai:http://127.0.0.1:9/v1#looker"}, ("http://127.0.0.1:9/v1", "cannot be reached", "start it")),
    ],
)  # fmt: skip
def test_errors_say_who_what_and_what_to_do(vision: Vision, trouble: dict[str, object], said: tuple[str, ...]) -> None:
    for name, value in trouble.items():
        setattr(vision, name, value)
    with pytest.raises(JudgeAway) as error:
        play(vision, key="wrong", attempts=2)
    assert all(part in error.value.detail for part in said), error.value.detail
    assert "looker" in error.value.detail
    assert "out of luck" not in error.value.quiet
    assert "wrong" not in error.value.detail


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"mode": "nested"}, "something else than a chat completion"),
        ({"mode": "long"}, "answered with more than 1 MiB"),
        ({"encoding": "gzip"}, "answered with a compressed body"),
        ({"mode": "dripping"}, "cannot be reached (TimeoutError)"),
    ],
)
def test_a_body_that_harms_its_reader_is_a_judge_that_is_away(
    vision: Vision, trouble: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in trouble.items():
        setattr(vision, name, value)
    if vision.mode == "dripping":
        monkeypatch.setattr(calls, "CALL_SECONDS", 0.5)
    with pytest.raises(JudgeAway) as error:
        play(vision, attempts=1)
    assert said in error.value.detail


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("rambles", "such as 'An image is worth a thousand words'"),
        ("null", "such as an empty message"),
        ("thoughts", "such as '<think>The first image is', cut at 4096 tokens"),
    ],
)
def test_knockout_of_a_judge_that_never_answers_says_what_it_said(vision: Vision, mode: str, said: str) -> None:
    vision.mode = mode
    with pytest.raises(JudgeAway, match="named neither image in any of its 8 answers") as error:
        play(vision)
    assert said in error.value.detail
    assert said not in error.value.quiet


@pytest.mark.parametrize("mode", ["thinks", "parts"])
def test_knockout_reads_the_letter_behind_thoughts_and_in_parts(vision: Vision, mode: str) -> None:
    vision.mode = mode
    assert ranking(list(PICTURES), play(vision))[0] == 3


def test_knockout_leaves_out_the_options_that_a_server_refuses(vision: Vision) -> None:
    """OpenAI's models that think refuse all of these."""
    vision.mode, vision.tells = "thinks", None
    vision.refuses = {
        "max_tokens": "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "temperature": "'temperature' does not support 0 with this model.",
    }
    assert ranking(list(PICTURES), play(vision))[0] == 3


@pytest.mark.parametrize(
    "name",
    ["openai:http://host/v1", "openai:host#m", "http://host/v1#m", "openai:http://u:p@host/v1#m", "openai:file:///x#m"],
)
def test_pairwise_address_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SetupError):
        parse_address(name)
