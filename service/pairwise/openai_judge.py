"""A pairwise judge behind an OpenAI-compatible server (vLLM, SGLang, Ollama, ...): two images in one message.

The prompt and both images leave this machine. The images are encoded as JPEG from their pixels, without metadata.
"""

import asyncio
import base64
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import httpx
from PIL import Image

from bestofn.judge.pairwise import LABELS, Answer, Answers, Rounds, knockout, question, read_answer
from bestofn.service.core.backoff import LONGEST_ASKED_SECONDS, asked_delay, backoff
from bestofn.service.core.errors import JudgeAway, SetupError
from bestofn.service.media.codec import MEDIA_TYPES, decode, encode

PREFIX = "openai:"
LONG_SIDE = 1024  # pixels; a longer side is shrunk to it
AT_ONCE = 8  # calls that are under way together
ATTEMPTS = 5
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
CALL_SECONDS = 120.0  # for all of a call; the limits above are of each read
MAX_ANSWER_BYTES = 1 << 20  # an answer is one letter, with log-probabilities of five tokens
MAX_TOKENS = 8  # one letter, and room for signs around it
MAX_THINKING_TOKENS = 4096  # for a model that does not come to its letter within MAX_TOKENS
TOP_LOGPROBS = 5
_PASSING = frozenset({408, 409, 425, 429})  # and all from 500 on
_ADVICE = {
    401: "set BESTOFN_PAIRWISE_API_KEY to a key that it knows",
    403: "set BESTOFN_PAIRWISE_API_KEY to a key that it knows",
    404: "correct the address, which mostly ends in /v1, or the model after #: {base}/models lists those it serves",
    400: "is {model} a model that reads two images a message?",
    429: "it is overloaded: try again later",
}


class Address(NamedTuple):
    """Where a judge is asked: `base_url` without a slash at its end, and the model's name there."""

    base_url: str
    model: str


def parse_address(name: str) -> Address:
    """Reads `openai:<base_url>#<model>`, such as openai:http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct.

    Raises:
        SetupError: it is none.
    """
    base, _, model = name.removeprefix(PREFIX).partition("#")
    try:
        url = httpx.URL(base)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if not name.startswith(PREFIX) or url.scheme not in ("http", "https") or not url.host or not model:
        raise SetupError(
            f"a pairwise judge is openai:<address>#<model>, such as openai:http://localhost:8000/v1#llava, got {name!r}"
        )
    if url.userinfo:
        raise SetupError("a pairwise judge's address holds no user or password: set BESTOFN_PAIRWISE_API_KEY instead")
    return Address(base.rstrip("/"), model)


class VisionJudge:
    """Asks one model; `async with` closes its connections. Belongs to one event loop.

    Attributes:
        address: of the model.
    """

    def __init__(self, name: str, key: str | None = None, attempts: int = ATTEMPTS) -> None:
        """
        Args:
            name: `openai:<base_url>#<model>`.
            key: sent as Bearer, if there is one.
            attempts: how often a call is tried that is lost, or refused for a reason that passes.

        Raises:
            SetupError: the name is none.
        """
        self.address = parse_address(name)
        headers = {"Accept-Encoding": "identity"}  # so that the limit on an answer's bytes is one on its text
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(timeout=TIMEOUT, headers=headers)
        self._attempts = attempts
        self._room = asyncio.Semaphore(AT_ONCE)
        self._options: dict[str, object] = {  # changed for servers that refuse one, and for models that think
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        self._unread: Counter[str] = Counter()  # what it said in place of an answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def knockout(
        self,
        prompt: str,
        order: Sequence[int],
        images: Mapping[int, bytes],
        before_round: Callable[[Rounds], Awaitable[None]] | None = None,
    ) -> Rounds:
        """The whole knockout among `order` (best placed first), each match asked in both orders.

        Args:
            prompt: what the images should show.
            order: who enters.
            images: their files' bytes.
            before_round: awaited before each round, with the rounds that are played.

        Raises:
            JudgeAway: an answer was not to be had, or none named an image.
            ValueError: an image cannot be read.
        """
        shown = {one: await asyncio.to_thread(data_url, images[one]) for one in order} if len(order) > 1 else {}
        game = knockout(order)
        try:
            pairings, rounds = next(game)
            while True:
                if before_round is not None:
                    await before_round(rounds)
                pairs = [pair for p in pairings if p.b is not None for pair in ((p.a, p.b), (p.b, p.a))]
                said = iter(await self._compare_all(prompt, [(shown[a], shown[b]) for a, b in pairs]))
                answers: list[Answers] = list(zip(said, said, strict=True))
                pairings, rounds = game.send(answers)
        except StopIteration as end:
            played: Rounds = end.value
        named = [answer is not None for matches in played for match in matches for answer in match.answers]
        if named and not any(named):
            example = f", such as {self._unread.most_common(1)[0][0]}" if self._unread else ""
            what = f"named neither image in any of its {len(named)} answers"
            raise self._away(what, "choose a model that answers with A or B", example)
        return played

    async def _compare_all(self, prompt: str, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.compare(prompt, *pair)) for pair in pairs]
        except ExceptionGroup as errors:  # the first ends the others, and all are of one kind
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def compare(self, prompt: str, first: str, second: str) -> Answer:
        """Which of two images (of `data_url`) shows the prompt better, in this order. Raises JudgeAway."""
        images = [{"type": "image_url", "image_url": {"url": url}} for url in (first, second)]
        texts = [{"type": "text", "text": text} for text in (*LABELS, question(prompt))]
        content = [texts[0], images[0], texts[1], images[1], texts[2]]
        while True:
            options = self._options
            async with self._room:
                reply = await self._ask([{"role": "user", "content": content}])
            try:
                choice = reply.json()["choices"][0]
                answer = _read(choice)
                cut = answer.choice is None and choice.get("finish_reason") == "length"
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                away = self._away("answered with something else than a chat completion", "is it an OpenAI API?")
                raise away from error
            if not (cut and MAX_TOKENS in options.values()):
                break
            self._options = {
                name: MAX_THINKING_TOKENS if value == MAX_TOKENS else value for name, value in self._options.items()
            }
        if answer.choice is None:
            self._unread[_shown(choice)] += 1
        return answer

    async def _ask(self, messages: Sequence[Mapping[str, Any]]) -> httpx.Response:
        url = f"{self.address.base_url}/chat/completions"
        attempt = 0
        while True:
            options = self._options
            delay = backoff(attempt)
            attempt += 1
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    response = await self._post(url, {"model": self.address.model, "messages": messages, **options})
            except (httpx.RequestError, TimeoutError) as error:  # lost, or slow
                if attempt >= self._attempts:
                    said = str(error) or type(error).__name__
                    raise self._away(f"cannot be reached ({said})", "start it, or correct the address") from error
            else:
                if response.is_success:
                    return response
                if response.status_code in (400, 422):
                    other = _without_refused(options, response.text)
                    if other is not None:
                        self._options = other if self._options is options else self._options
                        continue
                again = response.status_code in _PASSING or response.status_code >= 500
                waits = asked_delay(response.headers) or 0.0
                if not again or attempt >= self._attempts or waits > LONGEST_ASKED_SECONDS:
                    raise self._refused(response)
                delay = max(delay, waits)
            await asyncio.sleep(delay)

    async def _post(self, url: str, body: Mapping[str, Any]) -> httpx.Response:
        async with self._http.stream("POST", url, json=body) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self._away("answered with a compressed body, which was not asked for", "correct the server")
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    raise self._away(f"answered with more than {MAX_ANSWER_BYTES >> 20} MiB", "is it an OpenAI API?")
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(data))

    def _refused(self, response: httpx.Response) -> JudgeAway:
        said = re.sub(r"[^\x20-\x7e]+", " ", response.text)[:200].strip()
        known = _ADVICE.get(response.status_code, "see its log")
        advice = known.format(base=self.address.base_url, model=self.address.model)
        return self._away(f"answered {response.status_code}", advice, f" ({said})" if said else "")

    def _away(self, what: str, advice: str, said: str = "") -> JudgeAway:
        known = f"the pairwise judge {self.address.model} at {self.address.base_url} {what}"
        return JudgeAway(f"{known}{said}; {advice}", f"{known}; {advice}")


def data_url(image: bytes) -> str:
    """An image's file as a `data:` URL: RGB, its longer side at most LONG_SIDE pixels. Raises ValueError."""
    pixels = decode(image)
    pixels.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return f"data:{MEDIA_TYPES['jpeg']};base64,{base64.b64encode(encode(pixels, 'jpeg')).decode()}"


def _without_refused(options: dict[str, object], said: str) -> dict[str, object] | None:
    """Options that a server which refused others may take; None: there is nothing left to change."""
    if "max_tokens" in options and "max_completion_tokens" in said:  # OpenAI's models that think
        rest = {name: value for name, value in options.items() if name != "max_tokens"}
        return {**rest, "max_completion_tokens": options["max_tokens"]}
    if "temperature" in options and "temperature" in said:
        return {name: value for name, value in options.items() if name != "temperature"}
    if "logprobs" in options:  # some servers know no log-probabilities, and do not say so
        return {name: value for name, value in options.items() if "logprobs" not in name}
    return None


def _read(choice: Mapping[str, Any]) -> Answer:
    """The answer in a completion's choice.

    Raises:
        TypeError, LookupError, AttributeError, ValueError: it is not a choice of a completion.
    """
    message = choice["message"]
    text = _text(message["content"])
    thought = message.get("reasoning_content") or message.get("reasoning") or "</" in text
    letter_first = not thought and text.strip()[:1] not in ("", "<")  # else the first token is one of the thoughts
    return read_answer(text, _first_token(choice) if letter_first else {})


def _text(content: Any) -> str:
    """The text of a message's content: a string, null, or parts, of which thoughts are left out."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError(f"content is text or parts, got {type(content).__name__}")
    return content or ""


def _shown(choice: Mapping[str, Any]) -> str:
    """What a model said in place of an answer, on one short line."""
    message = choice["message"]
    text = _text(message["content"]) or str(message.get("refusal") or "")
    line = re.sub(r"[^\x20-\x7e]+", " ", text).strip()
    if choice.get("finish_reason") == "length":
        return f"{line[:80]!r}, cut at {MAX_THINKING_TOKENS} tokens"
    return repr(line[:80]) if line else "an empty message"


def _first_token(choice: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities of what the first token might have been; empty where the server does not tell them."""
    tokens = (choice.get("logprobs") or {}).get("content") or [{}]
    return {one["token"]: float(one["logprob"]) for one in tokens[0].get("top_logprobs") or ()}
