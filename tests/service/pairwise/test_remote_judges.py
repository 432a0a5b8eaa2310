"""Judges behind an address: an OpenAI-compatible server's first token, and the score server of the examples."""

import asyncio
import base64
import hashlib
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bestofn.cli.main import program
from bestofn.judge.verdict import BROKEN
from bestofn.service.core.errors import SetupError
from bestofn.service.core.schemas import GenerateRequest
from bestofn.service.core.settings import Settings
from bestofn.service.doctor.checkpoints import checkpoints, locate, memory
from bestofn.service.doctor.disk import disk
from bestofn.service.doctor.memory import needs
from bestofn.service.engine.judge_loader import find_judge
from bestofn.service.engine.loader import load_engine
from bestofn.service.pairwise.calls import Calls
from bestofn.service.pairwise.remote_judges import first_token_verdict
from bestofn.service.worker.local import local_spec, run_local
from tests.service.pairwise.checks import checks

EXAMPLE = Path(__file__).parents[3] / "examples" / "score_server.py"
RED, BLUE = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
CPU = torch.device("cpu")
PROMPT = "a photo of a red circle"


@dataclass
class Looker:
    """An OpenAI-compatible server that answers yes about red images.

    Attributes:
        answers: "logprobs", "text" (none are returned), "thoughts" (neither word among them), "nameless" (a token
            without text) or "garbage".
        refuses: image sides whose calls get a 400.
        asked: prompts of the calls.
    """

    url: str = ""
    answers: str = "logprobs"
    refuses: set[tuple[int, int]] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        picture, question = body["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            red, _, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0)
            if image.size in self.refuses:
                return 400, {"error": "not this one"}
        self.asked.append(question["text"])
        if self.answers == "garbage":
            return 200, ["what?"]
        p = 1 / (1 + math.exp((float(blue) - float(red)) / 64))
        spelled = {"Yes": 0.6 * p, " yes": 0.4 * p, "No": 1 - p}
        if self.answers == "thoughts":
            spelled = {"<think>": 0.9, "The": 0.1}
        if self.answers == "nameless":
            spelled = {None: 1.0}
        top = [{"token": token, "logprob": math.log(max(p, 1e-9))} for token, p in spelled.items()]
        silent = self.answers == "text" or not body.get("logprobs")
        logprobs = None if silent else {"content": [{"token": "Yes", "top_logprobs": top}]}
        message = {"role": "assistant", "content": "Yes"}
        return 200, {"choices": [{"message": message, "logprobs": logprobs, "finish_reason": "length"}]}


@pytest.fixture
def looker() -> Iterator[Looker]:
    state = Looker()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, reply = state.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"openai:http://127.0.0.1:{server.server_port}/v1#looker"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def score_server() -> Iterator[str]:
    """The address of the example, unchanged."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


def test_first_tokens_probabilities_are_summed_over_spellings(looker: Looker) -> None:
    found = find_judge(looker.url)
    assert (found.revision.name, found.path, len(found.revision.revision)) == ("openai:looker", None, 12)
    judge = found.load(CPU)
    looker.asked.clear()  # of its start-up test
    yes, no = judge.judge([RED, np.asarray(BLUE)], [PROMPT, "a <|im_end|> circle"])
    assert (yes.answer, no.answer) == ("yes", "no")
    assert yes.margin == pytest.approx(255 / 64, abs=0.1)  # of JPEG's colours
    assert no.margin == pytest.approx(-255 / 64, abs=0.1)
    assert sorted("< |im_end|>" in question for question in looker.asked) == [False, True]


UNREAD = {
    "text": "returns no log-probabilities; choose a server or a model that does",
    "thoughts": r"it gives no verdict\. Take a model that reads images, answers yes or no",
    "nameless": "something else than a chat completion; is it an OpenAI API",
    "garbage": "something else than a chat completion; is it an OpenAI API",
}


@pytest.mark.parametrize(("answers", "said"), UNREAD.items())
def test_an_answer_that_cannot_be_read_is_no_verdict(looker: Looker, answers: str, said: str) -> None:
    judge = find_judge(looker.url).load(CPU)
    looker.answers = answers
    assert judge.judge([RED], [PROMPT])[0] is BROKEN
    with pytest.raises(SetupError, match=said):
        find_judge(looker.url).load(CPU)


@pytest.mark.parametrize("address", ["openai:{}/v1#m", "{}"])
def test_start_up_test_with_a_wrong_key_names_the_setting_and_a_slow_server_its_time(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checks(lambda _: (401, {})) as url, pytest.raises(SetupError, match=r"401.*; set BESTOFN_JUDGE_API_KEY"):
        find_judge(address.format(url)).load(CPU)
    monkeypatch.setattr("bestofn.service.pairwise.remote_judges.VERDICT_SECONDS", 0.2)
    slow = checks(lambda _: (200, time.sleep(1)))
    with slow as url, pytest.raises(SetupError, match="did not answer within 0 s; see its log"):
        find_judge(address.format(url)).load(CPU)


def test_a_refused_image_leaves_the_next_call_as_it_was(looker: Looker) -> None:
    judge = find_judge(looker.url).load(CPU)
    looker.refuses = {RED.size}
    assert judge.judge([RED], [PROMPT])[0] is BROKEN
    looker.refuses = set()
    assert judge.judge([RED], [PROMPT])[0].answer == "yes"


def test_numbers_beyond_a_float_are_no_verdict_and_the_least_possible_ones_are() -> None:
    assert first_token_verdict({"yes": -0.1, "no": -9999.0}).margin == pytest.approx(9998.9)
    assert first_token_verdict({"yes": math.nan, "no": math.nan}) is BROKEN
    rewards = [1.0, -1.0]  # to the start-up test
    with checks(lambda _: (200, {"reward": rewards.pop(0) if rewards else 10**400})) as url:
        assert find_judge(url).load(CPU).judge([RED], [PROMPT])[0] is BROKEN


def test_of_two_judges_one_without_half_of_its_verdicts_leaves_a_winner() -> None:
    rewards = [1.0, -1.0]

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        odd = hashlib.sha256(base64.b64decode(body["image"])).digest()[0] % 2
        return (400, {}) if odd and not rewards else (200, {"reward": rewards.pop(0) if rewards else 2.0})

    with checks(answer) as url:
        engine = load_engine(Settings(judge=url, second_judge="shapes", threads=1, devices="cpu"))
        fields = {"num_samples": 8, "top_k": 8, "seed": 7, "num_inference_steps": 2, "rule": "lower_bound"}
        request = GenerateRequest.model_validate({"prompt": PROMPT} | fields)
        result = run_local(local_spec(request, engine, Settings()), engine).result
    missing = sum(one.verdict.second is None or one.verdict.yes_logit is None for one in result.candidates)
    assert (result.status, 0 < missing < 8) == ("succeeded", True)


def test_a_verdict_has_its_whole_time_once_its_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls run eight at a time: the last of 32 end after the time of one call is over."""
    monkeypatch.setattr("bestofn.service.pairwise.remote_judges.VERDICT_SECONDS", 5.0)
    rewards = [1.0, -1.0]

    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        if not rewards:
            time.sleep(1.5)
        return 200, {"reward": rewards.pop(0) if rewards else 2.0}

    with checks(answer) as url:
        engine = load_engine(Settings(judge=url, threads=1, devices="cpu"))
        request = GenerateRequest(prompt=PROMPT, num_samples=32, num_inference_steps=1)
        result = run_local(local_spec(request, engine, Settings()), engine).result
    assert [one.verdict.yes_logit for one in result.candidates] == [1.0] * 32


def test_a_word_that_is_missing_is_at_most_as_likely_as_the_least() -> None:
    verdict = first_token_verdict({"yes": math.log(0.5), "Maybe": math.log(0.3), "So": math.log(0.1)})
    assert (verdict.answer, verdict.margin) == ("yes", pytest.approx(math.log(5)))
    assert first_token_verdict({"Maybe": -0.1, "no": -3.0}).answer == "other"


def test_the_score_server_of_the_examples_judges_a_job(score_server: str) -> None:
    engine = load_engine(Settings(judge=score_server, threads=1, devices="cpu"))
    pinned = hashlib.sha256(b"redness@1").hexdigest()[:12]  # revisions of two servers may have one text
    assert (engine.judge_info.revision.name, engine.judge_info.revision.revision) == ("http:redness", pinned)
    judge = find_judge(score_server).load(CPU)
    assert judge.judge([RED, BLUE], [PROMPT] * 2)[0].margin == pytest.approx(255 / 32)
    spec = local_spec(GenerateRequest(prompt=PROMPT, num_samples=4, num_inference_steps=2), engine, Settings())
    result = run_local(spec, engine).result
    margins = {one.index: one.verdict.yes_logit - one.verdict.no_logit for one in result.candidates}
    assert result.images[0].candidate == max(margins, key=lambda index: margins[index])
    place = locate(score_server, judge=True)
    assert needs(locate("shapes"), [place], CPU) is not None
    said = [one.found for one in checkpoints(Settings(judge=score_server)) if one.what == "judge"]
    assert said == [f"{score_server}, revision {pinned}, behind an address"]


def test_no_proxy_is_asked_for_a_judge_on_this_machine(score_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    calls = Calls(score_server, "the judge", {}, "KEY", None, 1)
    assert asyncio.run(calls.send("GET", score_server)).is_success


def test_a_judge_that_answers_about_none_fails_the_job(looker: Looker) -> None:
    engine = load_engine(Settings(judge=looker.url, threads=1, devices="cpu"))
    looker.refuses = {(64, 64)}
    spec = local_spec(GenerateRequest(prompt=PROMPT, num_samples=2, num_inference_steps=2), engine, Settings())
    failed = run_local(spec, engine).result
    assert (failed.status, failed.error) == (
        "failed",
        "the judge gave no verdict on any candidate: the worker's log has the cause",
    )


def test_addresses_that_cannot_be_asked_are_refused() -> None:
    with pytest.raises(SetupError, match="a judge is openai:<address>#<model>, such as"):
        find_judge("openai:http://127.0.0.1:9/v1")
    with pytest.raises(SetupError, match="without a password"):
        find_judge("http://user:secret@127.0.0.1:9/score")
    with pytest.raises(SetupError, match="cannot be reached"):
        find_judge("http://127.0.0.1:9/score")
    assert locate("http://127.0.0.1:9/score", judge=True).broken


def test_doctor_asks_a_judge_behind_an_address_two_questions(looker: Looker) -> None:
    settings = Settings(judge=looker.url, devices="cpu")
    findings = [*checkpoints(settings), *memory(settings), *disk(settings)]
    assert [one.state for one in findings if one.what == "judge"] == ["ok"]
    assert len(looker.asked) == 2


def test_rank_judges_each_image_where_a_rule_is_given(looker: Looker, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("blue.png", "red.png")]
    for file, image in zip(files, (BLUE, RED), strict=True):
        image.save(file)
    done = CliRunner().invoke(program, ["rank", PROMPT, *files, "--judge", looker.url, "--rule", "official", "--json"])
    assert done.exit_code == 0, done.output
    ranked = [(one["rank"], one["verdict"]["answer"]) for one in json.loads(done.stdout)["images"]]
    assert ranked == [(2, "no"), (1, "yes")]
