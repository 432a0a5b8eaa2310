"""The prompt checker: what it refuses is a 400, and where it gives no answer no prompt passes."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from bestofn.service.core.errors import Unavailable
from bestofn.service.core.settings import Settings
from bestofn.service.pairwise.check_server import CheckServer
from tests.service.pairwise.checks import checks
from tests.waiting import PATIENCE

Serving = Callable[[Settings], AbstractContextManager[Any]]
LATER = {"Prefer": "respond-async"}


def refuses_blood(body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"unsafe": "blood" in body["prompt"]}


def test_a_prompt_that_is_refused_is_a_400_on_every_route(idle: Settings, serving: Serving) -> None:
    with (
        checks(refuses_blood) as url,
        serving(idle.model_copy(update={"prompt_checker": url})) as api,
        httpx.Client(base_url=api.url, timeout=PATIENCE, headers=LATER) as http,
    ):
        assert http.post("/generate", json={"prompt": "a red star"}).status_code == 202
        image = io.BytesIO()
        Image.new("RGB", (64, 64)).save(image, "png")
        sent = [("images", image.getvalue())] * 2
        refused = (
            http.post("/generate", json={"prompt": "blood"}),
            http.post("/rank", data={"prompt": "blood"}, files=sent),
        )
        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (400, "prompt_refused")
            assert answer.json()["field"] == "prompt"
        openai = http.post("/v1/images/generations", json={"prompt": "blood"})
        assert (openai.status_code, openai.json()["error"]["code"]) == (400, "prompt_refused")


@pytest.mark.parametrize("answer", [(400, {}), (200, {"unsafe": 0}), (200, ["safe"])])
def test_a_checker_without_an_answer_is_a_503_and_never_a_pass(
    idle: Settings, serving: Serving, answer: tuple[int, Any]
) -> None:
    with checks(lambda _: answer) as url, serving(idle.model_copy(update={"prompt_checker": url})) as api:
        refused = httpx.post(f"{api.url}/generate", json={"prompt": "a star"}, headers=LATER, timeout=PATIENCE)
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert "Retry-After" in refused.headers
    assert "no prompt passes without it" in refused.json()["detail"]


def test_generate_on_this_machine_checks_the_prompt_too(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    with checks(refuses_blood) as url:
        code, _, said = run("generate", "blood", "--local", BESTOFN_PROMPT_CHECKER=url)
    assert code != 0
    assert "the prompt checker refused this prompt as unsafe" in " ".join(said.split())
    assert list(tmp_path.glob("*.png")) == []


async def test_a_prompt_whose_turn_does_not_come_in_time_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestofn.service.pairwise.check_server.PROMPT_SECONDS", 0.1)
    monkeypatch.setattr("bestofn.service.pairwise.calls.AT_ONCE", 0)  # no call's turn ever comes
    with pytest.raises(Unavailable, match="no prompt passes without it"):
        await CheckServer("http://127.0.0.1:9/check", "prompt checker", None).check_prompt("a star")
