"""The door: a caller who is refused over and over hears so at once, without a body being read or the queue asked."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from bestofn.service.core.errors import BestOfNError

TOKENS = 20.0  # refusals of a caller for each of which the queue was asked ...
TOKENS_PER_SECOND = 5.0  # ... and so many more each second
CALLERS_KEPT = 4096


@dataclass(slots=True)
class _Refused:
    tokens: float  # that are left
    at: float  # when they were counted
    answer: BestOfNError


class RefusalLimiter:
    """For each caller who was refused lately, the last answer and how many more looks at the queue there are.

    A flood then costs next to nothing, and who comes back when the answer says so never notices. Room is given to
    whoever looks when there is some: an accepted submission costs no look.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: OrderedDict[str, _Refused] = OrderedDict()

    def enter(self, caller: str) -> None:
        """Lets a caller through to the queue, for one look if it was refused lately.

        Raises:
            Overloaded, Unavailable: its last refusal, if it has no look left.
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
        """Gives the look back."""
        known = self._callers.get(caller)
        if known is not None:
            known.tokens += 1

    def refused(self, caller: str, answer: BestOfNError) -> None:
        """Notes what the queue said."""
        known = self._callers.setdefault(caller, _Refused(TOKENS - 1, self._clock(), answer))
        known.answer = answer
        self._callers.move_to_end(caller)
        if len(self._callers) > CALLERS_KEPT:
            self._callers.popitem(last=False)
