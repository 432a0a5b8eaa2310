"""Limits of each caller: turns of its calls, a number of open ones, and a rate limit (throttle) once it is refused."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from bestofn.service.core.errors import BestOfNError, TooManyCalls
from bestofn.service.core.turns import Turns

Kind = Literal["wait", "stream"]
AT_END = "at_end"  # key of an ASGI scope: an ExitStack that is closed after the answer
_TURN = "turn"  # key of an ASGI scope: the semaphore that the call holds
WORKED_ON = 8  # calls of a key at a time; the others wait for their turn
RETRY_SECONDS = 1.0
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


class OpenCalls:
    """Counts the calls of one API process, by caller.

    A call is worked on in its turn, so that one caller's burst costs the others little. Waiting calls and event streams
    hold no turn, and have a limit instead. All calls of a caller in progress have a limit of twice that, or of half the
    connections.

    Attributes:
        limit: maximum of waiting calls and event streams together, of each caller.
        most: maximum of all calls in progress, of each caller.
        refused: number of calls refused so far.
        turns: turns of the calls that are worked on.
    """

    def __init__(self, limit: int, connections: int) -> None:
        self.limit = limit
        self.most = max(1, min(2 * limit, connections // 2))
        self.refused = 0
        self._all: Counter[str] = Counter()
        self._open: Counter[tuple[str, Kind]] = Counter()
        self.turns = Turns(WORKED_ON)

    def count(self, kind: Kind) -> int:
        """Number of open calls of this kind, of all callers."""
        return sum(number for (_, known), number in self._open.items() if known == kind)

    def admit(self, scope: MutableMapping[str, Any]) -> None:
        """Count a call until its answer is sent. Raises TooManyCalls if its caller has too many in progress."""
        caller = scope.get("caller", "")
        if self._all[caller] >= self.most:
            self._refuse(f"{self.most} calls of this key are in progress, as many as the limit allows; try again later")
        self._all[caller] += 1
        scope[AT_END].callback(_uncount, self._all, caller)

    async def take_turn(self, scope: MutableMapping[str, Any], path: str = "") -> None:
        """Wait for the call's turn, and hold it until the answer is sent or `enter` is called.

        Args:
            scope: ASGI scope of the request, with its `caller` if keys are asked for.
            path: path of calls that take turns of their own; "": all others.
        """
        turn = self.turns.of(path + scope.get("caller", ""))
        await turn.acquire()
        scope[_TURN] = turn
        scope[AT_END].callback(_release, scope)

    def enter(self, scope: MutableMapping[str, Any], kind: Kind) -> None:
        """Count a call as one that waits or streams, until its answer is sent; it gives up its turn.

        Args:
            scope: ASGI scope of the request, with its `caller` if keys are asked for.
            kind: what the call does.

        Raises:
            TooManyCalls: its caller has as many open calls as the limit allows.
        """
        caller = scope.get("caller", "")
        number = self._open[caller, "wait"] + self._open[caller, "stream"]
        if number >= self.limit:
            self._refuse(
                f"{number} waiting calls and event streams of this key are open, as many as the limit allows; "
                "try again when one has ended, or submit with `Prefer: respond-async` and poll GET /jobs/ID"
            )
        _release(scope)
        self._open[caller, kind] += 1
        scope[AT_END].callback(_uncount, self._open, (caller, kind))

    def _refuse(self, detail: str) -> NoReturn:
        self.refused += 1
        raise TooManyCalls(detail, retry_after=RETRY_SECONDS)


def _release(scope: MutableMapping[str, Any]) -> None:
    turn = scope.pop(_TURN, None)
    if turn is not None:
        turn.release()


def _uncount(counter: "Counter[Any]", key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
