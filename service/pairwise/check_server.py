"""Safety checkers behind an address: their protocol, and the checker of prompts. Without torch: the API checks prompts.

GET answers `{"name": TEXT, "revision": TEXT}`. POST of `{"prompt": TEXT}` or `{"image": BASE64_OF_PNG}` answers
`{"unsafe": true}` or `{"unsafe": false}`. Every other answer is a failure of the checker.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import structlog

from bestofn.service.core.errors import JudgeAway, PromptRefused, SetupError, Unavailable
from bestofn.service.core.settings import Settings
from bestofn.service.pairwise.calls import NO_NAME, Calls, web_address

log = structlog.get_logger()

KEY = "BESTOFN_CHECKER_API_KEY"
PROMPT_SECONDS, IMAGE_SECONDS = 10.0, 30.0  # a check with its retries
RETRY_SECONDS = 5.0
ATTEMPTS = 3


class CheckServer:
    """A safety checker behind an address (module docstring). Belongs to one event loop."""

    def __init__(self, url: str, what: str, key: str | None) -> None:
        """
        Args:
            url: its address.
            what: for messages, `prompt checker` or `image checker`.
            key: sent as Bearer, if there is one.

        Raises:
            SetupError: the address is none.
        """
        parsed = web_address(url)
        if parsed is None or parsed.userinfo:
            raise SetupError(f"the address of a {what} is like http://host:8002/check, without a password, got {url!r}")
        self._url = url
        self._calls = Calls(url, f"the {what} at {url}", {404: "correct the address"}, KEY, key, ATTEMPTS)

    async def revision(self) -> str:
        """12 hexadecimal digits of its name and revision. Raises JudgeAway."""
        async with asyncio.timeout(IMAGE_SECONDS):
            reply = await self._calls.send("GET", self._url)
        with self._calls.reading(*NO_NAME):
            fields = reply.json()
            known = f"{fields['name']}@{fields['revision']}"
        return hashlib.sha256(known.encode()).hexdigest()[:12]

    async def unsafe(self, body: Mapping[str, Any], seconds: float) -> bool:
        """Whether what is sent is unsafe. Raises JudgeAway, or TimeoutError some seconds after its turn has come."""
        async with self._calls.room, asyncio.timeout(seconds):
            reply = await self._calls.send("POST", self._url, lambda: body)
        try:
            unsafe = reply.json()["unsafe"]
        except (ValueError, LookupError, TypeError, RecursionError):
            unsafe = None
        if not isinstance(unsafe, bool):
            raise self._calls.away('answered without {"unsafe": true} or {"unsafe": false}', "see its log")
        return unsafe

    async def check_prompt(self, prompt: str) -> None:
        """Let a safe prompt pass.

        Raises:
            PromptRefused: the prompt is unsafe.
            Unavailable: the checker gave no answer.
        """
        try:
            async with asyncio.timeout(PROMPT_SECONDS):  # its turn included: a caller waits for the answer
                unsafe = await self.unsafe({"prompt": prompt}, PROMPT_SECONDS)
        except (JudgeAway, TimeoutError) as error:
            said = error.quiet if isinstance(error, JudgeAway) else f"no answer within {PROMPT_SECONDS:.0f} s"
            log.warning("no check of a prompt", error=said)
            raise Unavailable(
                "the prompt checker gave no answer, and no prompt passes without it; try again",
                retry_after=RETRY_SECONDS,
            ) from error
        if unsafe:
            raise PromptRefused("the prompt checker refused this prompt as unsafe; change it", field="prompt")


def prompt_checker(settings: Settings) -> CheckServer | None:
    """The prompt checker of the settings; None: prompts are not checked. Raises SetupError."""
    if not settings.prompt_checker:
        return None
    return CheckServer(settings.prompt_checker, "prompt checker", settings.checker_api_key)
