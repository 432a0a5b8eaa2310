"""A pairwise judge behind an OpenAI-compatible server (vLLM, SGLang, Ollama, ...): two images in one message.

The prompt and both images leave this machine. The images are encoded as JPEG from their pixels, without metadata.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from bestofn.judge.pairwise import LABELS, Answer, Answers, Rounds, knockout, question, read_answer
from bestofn.service.media.codec import decode
from bestofn.service.pairwise.calls import ATTEMPTS, NO_COMPLETION, ChatServer, first_token, image_url, parse_address

MAX_TOKENS = 8  # one letter, and room for signs around it
MAX_THINKING_TOKENS = 4096  # for a model that does not come to its letter within MAX_TOKENS
TOP_LOGPROBS = 5


class VisionJudge:
    """Asks one model; `async with` closes its connections. Belongs to one event loop.

    Attributes:
        address: the model's address.
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
        what, key_setting = "pairwise judge", "BESTOFN_PAIRWISE_API_KEY"
        self._server = ChatServer(
            self.address, what, key_setting, key, attempts, MAX_TOKENS, TOP_LOGPROBS, words_do=True
        )
        self._unread: Counter[str] = Counter()  # what it said in place of an answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._server.aclose()

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
                both = [(shown[a], shown[b]) for pair in pairings for a, b in (pair, pair[::-1])]
                said = iter(await self._compare_all(prompt, both))
                answers: list[Answers] = list(zip(said, said, strict=True))
                pairings, rounds = game.send(answers)
        except StopIteration as end:
            played: Rounds = end.value
        named = [answer is not None for matches in played for match in matches for answer in match.answers]
        if named and not any(named):
            example = f", such as {self._unread.most_common(1)[0][0]}" if self._unread else ""
            what = f"named neither image in any of its {len(named)} answers"
            raise self._server.away(what, "choose a model that answers with A or B", example)
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
            options = self._server.options
            async with self._server.room:
                reply = await self._server.ask([{"role": "user", "content": content}])
            with self._server.reading(*NO_COMPLETION):
                choice = reply.json()["choices"][0]
                answer = _read(choice)
                cut = answer is None and choice.get("finish_reason") == "length"
            if not (cut and MAX_TOKENS in options.values()):
                break
            self._server.options = {
                name: MAX_THINKING_TOKENS if value == MAX_TOKENS else value
                for name, value in self._server.options.items()
            }
        if answer is None:
            self._unread[_shown(choice)] += 1
        return answer


def data_url(image: bytes) -> str:
    """An image's file as a `data:` URL: RGB, its longer side at most LONG_SIDE pixels. Raises ValueError."""
    return image_url(decode(image))


def _read(choice: Mapping[str, Any]) -> Answer:
    """The answer in a completion's choice.

    Raises:
        TypeError, LookupError, AttributeError, ValueError: it is not a choice of a completion.
    """
    message = choice["message"]
    text = _text(message["content"])
    thought = message.get("reasoning_content") or message.get("reasoning") or "</" in text
    letter_first = not thought and text.strip()[:1] not in ("", "<")  # else the first token is one of the thoughts
    return read_answer(text, first_token(choice) if letter_first else {})


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
