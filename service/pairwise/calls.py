"""Calls to a judge's server: retries that wait, answers of bounded size, errors that name the fix.

`ChatServer` is an OpenAI-compatible server (vLLM, SGLang, Ollama, ...); its options adapt to what the server refuses.
"""

import asyncio
import base64
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import httpx
from PIL import Image

from bestofn.service.core.backoff import LONGEST_ASKED_SECONDS, asked_delay, backoff
from bestofn.service.core.errors import JudgeAway, SetupError
from bestofn.service.host.loopback import uses_proxies
from bestofn.service.media.codec import MEDIA_TYPES, encode

T = TypeVar("T")

PREFIX = "openai:"
NO_COMPLETION = "answered with something else than a chat completion", "is it an OpenAI API?"
NO_NAME = 'answered GET without {"name": .., "revision": ..}', "correct the server"
LONG_SIDE = 1024  # pixels; a longer side is shrunk to it
AT_ONCE = 8  # calls that are under way together
ATTEMPTS = 5
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
CALL_SECONDS = 120.0  # for all of a call; the limits above are of each read
MAX_ANSWER_BYTES = 1 << 20  # an answer is a word or a number, with log-probabilities of a few tokens
_PASSING = frozenset({408, 409, 425, 429})  # and all from 500 on
_OVERLOADED = "it is overloaded: try again later"


class Address(NamedTuple):
    """Where a judge is asked: `base_url` without a slash at its end, and the model's name there."""

    base_url: str
    model: str


def parse_address(name: str, what: str = "pairwise judge", key: str = "BESTOFN_PAIRWISE_API_KEY") -> Address:
    """Reads `openai:<base_url>#<model>`, such as openai:http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct.

    Args:
        name: the judge's name.
        what, key: for messages, what it names and the setting of its API key.

    Raises:
        SetupError: it is none.
    """
    base, _, model = name.removeprefix(PREFIX).partition("#")
    url = web_address(base)
    if not name.startswith(PREFIX) or url is None or not model:
        raise SetupError(
            f"a {what} is openai:<address>#<model>, such as openai:http://localhost:8000/v1#llava, got {name!r}"
        )
    if url.userinfo:
        raise SetupError(f"a {what}'s address holds no user or password: set {key} instead")
    return Address(base.rstrip("/"), model)


def web_address(text: str) -> httpx.URL | None:
    """The http or https address in a text; None if it is none."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


class Calls:
    """Calls to one server. Belongs to one event loop.

    Attributes:
        room: calls that may still begin.
    """

    def __init__(
        self, url: str, subject: str, advice: Mapping[int, str], key_setting: str, key: str | None, attempts: int
    ) -> None:
        """
        Args:
            url: the server's address.
            subject: the judge and its address, for messages.
            advice: what to do about an HTTP status.
            key_setting: for messages, the setting of the key.
            key: sent as Bearer, if there is one.
            attempts: attempts at a call that is lost, or refused for a reason that passes.
        """
        headers = {"Accept-Encoding": "identity"}  # so that the limit on an answer's bytes is one on its text
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(timeout=TIMEOUT, headers=headers, trust_env=uses_proxies(url))
        self._subject = subject
        unknown = f"set {key_setting} to a key that it knows"
        self._advice = {401: unknown, 403: unknown, 429: _OVERLOADED, **advice}
        self._attempts = attempts
        self.room = asyncio.Semaphore(AT_ONCE)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        url: str,
        body: Callable[[], Mapping[str, Any]] | None = None,
        adapt: Callable[[httpx.Response], bool] = lambda _: False,
    ) -> httpx.Response:
        """A successful answer to a call.

        Args:
            body: JSON of the next attempt.
            adapt: changes what `body` returns after a 400 or 422; returns whether another attempt is worth its time.

        Raises:
            JudgeAway: none was to be had.
        """
        attempt = 0
        while True:
            delay = backoff(attempt)
            attempt += 1
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    response = await self._once(method, url, None if body is None else body())
            except (httpx.RequestError, TimeoutError) as error:  # lost, or slow
                if attempt >= self._attempts:
                    said = str(error) or type(error).__name__
                    raise self.away(f"cannot be reached ({said})", "start it, or correct the address") from error
            else:
                if response.is_success:
                    return response
                if response.status_code in (400, 422) and adapt(response):
                    continue
                again = response.status_code in _PASSING or response.status_code >= 500
                waits = asked_delay(response.headers) or 0.0
                if not again or attempt >= self._attempts or waits > LONGEST_ASKED_SECONDS:
                    raise self._refused(response)
                delay = max(delay, waits)
            await asyncio.sleep(delay)

    async def _once(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        async with self._http.stream(method, url, json=body) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise self.away("answered with a compressed body, which was not asked for", "correct the server")
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    raise self.away(f"answered with more than {MAX_ANSWER_BYTES >> 20} MiB", "correct the address")
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(data))

    def _refused(self, response: httpx.Response) -> JudgeAway:
        said = re.sub(r"[^\x20-\x7e]+", " ", response.text)[:200].strip()
        advice = self._advice.get(response.status_code, "see its log")
        return self.away(f"answered {response.status_code}", advice, f" ({said})" if said else "")

    @contextmanager
    def reading(self, what: str, advice: str) -> Iterator[None]:
        """Raise the error of `away` if the block cannot read an answer, which is none of those that are expected."""
        try:
            yield
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self.away(what, advice) from error

    def away(self, what: str, advice: str, said: str = "") -> JudgeAway:
        """The error of a judge that gives no answer."""
        known = f"{self._subject} {what}"
        return JudgeAway(f"{known}{said}; {advice}", f"{known}; {advice}")


class ChatServer(Calls):
    """One model behind an OpenAI-compatible server.

    Attributes:
        address: the model's address.
        options: a completion's options, without those that the server has refused.
    """

    def __init__(
        self,
        address: Address,
        what: str,
        key_setting: str,
        key: str | None,
        attempts: int,
        tokens: int,
        top: int,
        *,
        words_do: bool,
    ) -> None:
        """
        Args:
            address: the model's address.
            what, key_setting: for messages, as of `parse_address`.
            key: sent as Bearer, if there is one.
            attempts: as of `Calls`.
            tokens: maximum number of tokens of an answer.
            top: number of log-probabilities of a token.
            words_do: an answer without log-probabilities is worth having.
        """
        models = f"{address.base_url}/models lists those it serves"
        advice = {
            404: f"correct the address, which mostly ends in /v1, or the model after #: {models}",
            400: f"is {address.model} a model that reads images?",
        }
        subject = f"the {what} {address.model} at {address.base_url}"
        super().__init__(address.base_url, subject, advice, key_setting, key, attempts)
        self.address = address
        self._words_do = words_do
        self.options: dict[str, object] = {
            "temperature": 0,
            "max_tokens": tokens,
            "logprobs": True,
            "top_logprobs": top,
        }

    async def ask(self, messages: Sequence[Mapping[str, Any]]) -> httpx.Response:
        """The answer to a conversation. Raises JudgeAway."""
        sent = self.options

        def body() -> Mapping[str, Any]:
            return {"model": self.address.model, "messages": messages, **sent}

        def adapt(response: httpx.Response) -> bool:
            nonlocal sent
            other = _without_refused(sent, response.text, self._words_do)
            sent = other or sent
            return other is not None

        answer = await self.send("POST", f"{self.address.base_url}/chat/completions", body, adapt)
        self.options = sent  # a refusal alone may be about this image or prompt
        return answer


@cache
def call_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all calls of an engine, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judge calls", daemon=True).start()
    return loop


def run_call(call: Coroutine[Any, Any, T]) -> T:
    """The result of a call in `call_loop`, waited for."""
    return asyncio.run_coroutine_threadsafe(call, call_loop()).result()


def first_token(choice: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities of what a choice's first token might have been; empty where the server returns none."""
    tokens = (choice.get("logprobs") or {}).get("content") or [{}]
    return {one["token"]: float(one["logprob"]) for one in tokens[0].get("top_logprobs") or ()}


def image_url(pixels: Image.Image) -> str:
    """An image as a `data:` URL of JPEG: its longer side at most LONG_SIDE pixels."""
    pixels = pixels.copy()
    pixels.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return f"data:{MEDIA_TYPES['jpeg']};base64,{base64.b64encode(encode(pixels, 'jpeg')).decode()}"


def _without_refused(options: dict[str, object], said: str, words_do: bool) -> dict[str, object] | None:
    """Options that a server which refused others may take; None: there is nothing left to change."""
    if "max_tokens" in options and "max_completion_tokens" in said:  # OpenAI's models that think
        rest = {name: value for name, value in options.items() if name != "max_tokens"}
        return {**rest, "max_completion_tokens": options["max_tokens"]}
    if "temperature" in options and "temperature" in said:
        return {name: value for name, value in options.items() if name != "temperature"}
    if "logprobs" in options and words_do:  # some servers know no log-probabilities, and do not say so
        return {name: value for name, value in options.items() if "logprobs" not in name}
    return None
