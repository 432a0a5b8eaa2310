"""Rate limit for refused callers: a throttle that repeats the last refusal without reading the body or the queue."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bestofn.service.core.errors import BestOfNError

TOKENS = 20.0  # refusals of a caller that may ask the queue
TOKENS_PER_SECOND = 5.0  # further ones each second
CALLERS_KEPT = 4096


@dataclass(slots=True)
class _Refused:
    tokens: float  # tokens left
    at: float  # time of the last count
    answer: BestOfNError


class RefusalLimiter:
    """Token bucket per refused caller: while it is empty, the last refusal is repeated without touching Redis.

    A flood then costs almost nothing. A caller that waits for Retry-After always has a token. An accepted submission
    gives its token back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: OrderedDict[str, _Refused] = OrderedDict()

    def enter(self, caller: str) -> None:
        """Let a caller through to the queue; a caller that was refused lately pays one token.

        Raises:
            Overloaded, Unavailable: its last refusal, if it has no token left.
        """
        known = self._callers.get(caller)
        if known is None:
            return
        now = self._clock()
        known.tokens += (now - known.at) * TOKENS_PER_SECOND
        known.at = now
        if known.tokens >= TOKENS:
            del self._callers[caller]
        elif known.tokens < 1:
            raise known.answer.with_traceback(None)
        else:
            known.tokens -= 1

    def accepted(self, caller: str) -> None:
        """Give the token back."""
        known = self._callers.get(caller)
        if known is not None:
            known.tokens += 1

    def refused(self, caller: str, answer: BestOfNError) -> None:
        """Note the refusal of the queue."""
        known = self._callers.setdefault(caller, _Refused(TOKENS - 1, self._clock(), answer))
        known.answer = answer
        self._callers.move_to_end(caller)
        if len(self._callers) > CALLERS_KEPT:
            self._callers.popitem(last=False)
