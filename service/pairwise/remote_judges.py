"""Pointwise judges and the image checker behind an address: an OpenAI-compatible server, or a small JSON protocol.

The prompt and the image leave this machine. Score protocol: GET answers `{"name": TEXT, "revision": TEXT}`; POST of
`{"prompt": TEXT, "image": BASE64_OF_PNG}` answers `{"yes": LOGIT, "no": LOGIT}` or `{"reward": NUMBER}`.
"""

import asyncio
import base64
import hashlib
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cache

import structlog
import torch
from PIL import Image

from bestofn.judge.calibration import Calibration
from bestofn.judge.checker import CheckFailed, ImageChecker
from bestofn.judge.interface import QUESTION, WORDS, PointwiseJudge, pil_images, reward_verdict
from bestofn.judge.names import JudgeName
from bestofn.judge.pairwise import without_control_tokens
from bestofn.judge.preprocess import ImageLike
from bestofn.judge.verdict import BROKEN, Answer, Verdict
from bestofn.service.core.errors import JudgeAway, SetupError
from bestofn.service.core.jobs import Revision
from bestofn.service.media.codec import encode
from bestofn.service.pairwise.calls import (
    NO_COMPLETION,
    NO_NAME,
    Calls,
    ChatServer,
    call_loop,
    first_token,
    image_url,
    parse_address,
    run_call,
    web_address,
)
from bestofn.service.pairwise.check_server import IMAGE_SECONDS, CheckServer

log = structlog.get_logger()

KEY = "BESTOFN_JUDGE_API_KEY"
VERDICT_SECONDS = 30.0  # less than the time after which an engine counts as stalled
ATTEMPTS = 3
TOP_LOGPROBS = 20  # the most that OpenAI's API allows
_NAME = re.compile(r"[\w./:@+-]{1,100}")


class RemoteJudge(PointwiseJudge):
    """A judge behind an address; every verdict is one call, and the calls of an `ask` run together.

    A call that fails, or takes longer than VERDICT_SECONDS, gives no verdict, and a warning in the log.
    """

    max_batch = 1

    def __init__(self, calls: Calls) -> None:
        """
        Args:
            calls: to the server.
        """
        self.calls = calls

    def ask(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        prompts: Sequence[str],
        *,
        one_tile: bool = False,
        non_blocking: bool = False,
    ) -> list[Future[Verdict]]:
        """As `PointwiseJudge.ask`; the calls have begun."""
        if len(images) != len(prompts):
            raise ValueError(f"each image needs its prompt, got {len(images)} images and {len(prompts)} prompts")
        pairs = zip(pil_images(images), prompts, strict=True)
        return [asyncio.run_coroutine_threadsafe(self._bounded(*pair), call_loop()) for pair in pairs]

    def answered(self, row: Future[Verdict]) -> bool:
        """As `PointwiseJudge.answered`."""
        return row.done()

    def answer(self, row: Future[Verdict]) -> Verdict:
        """The verdict of one call. Raises JudgeAway."""
        try:
            return row.result()
        except TimeoutError as error:
            raise self.calls.away(f"did not answer within {VERDICT_SECONDS:.0f} s", "see its log") from error

    def verdict(self, row: Future[Verdict]) -> Verdict:
        """The verdict of one call, or none."""
        try:
            return self.answer(row)
        except JudgeAway as error:
            log.warning("no verdict", error=error.quiet)
        return BROKEN

    def flops(self, width: int, height: int, prompt: str = "", *, one_tile: bool = False) -> int:
        """0: nothing is computed here."""
        return 0

    async def _bounded(self, image: Image.Image, prompt: str) -> Verdict:
        async with self.calls.room, asyncio.timeout(VERDICT_SECONDS):
            return await self._verdict(image, prompt)

    @abstractmethod
    async def _verdict(self, image: Image.Image, prompt: str) -> Verdict:
        """One call. Raises JudgeAway."""


class OpenAIJudge(RemoteJudge):
    """A vision-language model behind an OpenAI-compatible server, by the log-probabilities of its first token."""

    calls: ChatServer

    async def _verdict(self, image: Image.Image, prompt: str) -> Verdict:
        question = QUESTION.replace("{prompt}", without_control_tokens(prompt))
        shown = {"type": "image_url", "image_url": {"url": await asyncio.to_thread(image_url, image)}}
        reply = await self.calls.ask([{"role": "user", "content": [shown, {"type": "text", "text": question}]}])
        with self.calls.reading(*NO_COMPLETION):
            logprobs = first_token(reply.json()["choices"][0])
            if logprobs:
                return first_token_verdict(logprobs)
        raise self.calls.away("returns no log-probabilities", "choose a server or a model that does")


class ScoreJudge(RemoteJudge):
    """A score server (module docstring); it runs whatever pins other versions than this process."""

    def __init__(self, calls: Calls, url: str, calibration: Calibration | None) -> None:
        """
        Args:
            calls: to the server.
            url: its address.
            calibration: decides which rewards are a yes.
        """
        super().__init__(calls)
        self._url = url
        self._calibration = calibration

    async def _verdict(self, image: Image.Image, prompt: str) -> Verdict:
        file = await asyncio.to_thread(encode, image, "png")
        body = {"prompt": prompt, "image": base64.b64encode(file).decode()}
        reply = await self.calls.send("POST", self._url, lambda: body)
        with self.calls.reading('answered neither {"yes": .., "no": ..} nor {"reward": ..}', "see its log"):
            fields = reply.json()
            if "reward" in fields:
                return reward_verdict(float(fields["reward"]), self._calibration)
            yes, no = float(fields["yes"]), float(fields["no"])
        return Verdict("yes" if yes > no else "no", yes, no) if math.isfinite(yes - no) else BROKEN


class RemoteChecker(ImageChecker):
    """An image checker behind an address; every check is one call, and the calls of an `ask` run together."""

    def __init__(self, server: CheckServer) -> None:
        """
        Args:
            server: whose calls run in the event loop of all such calls.
        """
        self._server = server

    def ask(self, images: Sequence[ImageLike] | torch.Tensor) -> list[Future[bool]]:
        """As `ImageChecker.ask`; the calls have begun."""
        return [asyncio.run_coroutine_threadsafe(self._check(image), call_loop()) for image in pil_images(images)]

    def answered(self, row: Future[bool]) -> bool:
        """As `ImageChecker.answered`."""
        return row.done()

    def unsafe(self, row: Future[bool]) -> bool:
        """As `ImageChecker.unsafe`."""
        try:
            return row.result()
        except JudgeAway as error:
            raise CheckFailed(error.quiet) from error
        except TimeoutError as error:
            raise CheckFailed(f"the image checker did not answer within {IMAGE_SECONDS:.0f} s") from error

    async def _check(self, image: Image.Image) -> bool:
        file = await asyncio.to_thread(encode, image, "png")
        return await self._server.unsafe({"image": base64.b64encode(file).decode()}, IMAGE_SECONDS)


def first_token_verdict(logprobs: dict[str, float]) -> Verdict:
    """The verdict in the likeliest first tokens: each word's probability is summed over its spellings.

    A word that is not among them counts as the least likely that is. If both are not, or a number is not finite, there
    is no verdict.
    """
    if not all(map(math.isfinite, logprobs.values())):
        return BROKEN
    least = min(logprobs.values())
    found: dict[str, list[float]] = {word: [] for word in WORDS}
    other = -math.inf
    for token, logprob in logprobs.items():
        word = token.strip("\u0120\u2581 \n").lower()
        if word in found:
            found[word].append(logprob)
        else:
            other = max(other, logprob)
    if not any(found.values()):
        return BROKEN
    yes, no = (_log_sum(found[word] or [least]) for word in WORDS)
    answer: Answer = "yes" if yes > no else "no"
    return Verdict(answer if max(yes, no) >= other else "other", yes, no)


def _log_sum(logprobs: Sequence[float]) -> float:
    """Logarithm of the sum of probabilities; some servers write -9999 for the least of them."""
    most = max(logprobs)
    return most + math.log(sum(math.exp(one - most) for one in logprobs))


def find_remote(name: JudgeName, key: str | None) -> Revision:
    """The revision of a judge behind an address; a score server is asked for it.

    An OpenAI-compatible server does not say which weights it runs: the hash of address and model counts.

    Raises:
        SetupError: the name is no address, or the server does not answer as expected.
    """
    if name.kind == "openai":
        address = parse_address(name.full, "judge", KEY)
        return Revision(name=f"openai:{address.model}", revision=hashlib.sha256(name.place.encode()).hexdigest()[:12])
    url = web_address(name.place)
    if url is None or url.userinfo:
        raise SetupError(f"a judge's address is like http://host:8001/score, without a password, got {name.place!r}")
    calls = _score_calls(name.place, key)
    reply = run_call(calls.send("GET", name.place))
    with calls.reading(*NO_NAME):
        fields = reply.json()
        known, revision = str(fields["name"]), str(fields["revision"])
    if not (_NAME.fullmatch(known) and _NAME.fullmatch(revision)):
        raise calls.away(f"has the name {known[:40]!r}, revision {revision[:40]!r}", "use letters, digits and ./:@+-")
    pinned = hashlib.sha256(f"{known}@{revision}".encode()).hexdigest()[:12]  # many servers say revision 1
    return Revision(name=f"http:{known}", revision=pinned)


@cache
def load_remote(name: JudgeName, key: str | None, calibration: Calibration | None) -> RemoteJudge:
    """The judge behind an address, one for each process."""
    if name.kind == "openai":
        address = parse_address(name.full, "judge", KEY)
        return OpenAIJudge(ChatServer(address, "judge", KEY, key, ATTEMPTS, 1, TOP_LOGPROBS, words_do=False))
    return ScoreJudge(_score_calls(name.place, key), name.place, calibration)


def _score_calls(url: str, key: str | None) -> Calls:
    return Calls(url, f"the judge at {url}", {404: "correct the address"}, KEY, key, ATTEMPTS)
