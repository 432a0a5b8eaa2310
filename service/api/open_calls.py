"""Limits of each key's calls: turns of those that are worked on, and a number of open waits and event streams."""

import asyncio
from collections import Counter
from collections.abc import MutableMapping
from contextlib import ExitStack
from typing import Any, Literal, NoReturn
from weakref import WeakValueDictionary

from bestofn.service.core.errors import TooManyCalls

Kind = Literal["wait", "stream"]
AT_END = "at_end"  # of an ASGI scope: an ExitStack that is closed after the answer
_TURN = "turn"  # of an ASGI scope: the semaphore that the call holds
WORKED_ON = 8  # calls of a key at a time; the others wait for their turn
RETRY_SECONDS = 1.0


class OpenCalls:
    """Counts the calls of one API process, by caller.

    A call is worked on in its turn, so that one caller's burst costs the others little. Waiting calls and event streams
    hold no turn, and have a limit instead. All calls of a caller in progress have a limit of twice that, or of half the
    connections.

    Attributes:
        limit: maximum of waiting calls and event streams together, of each caller.
        most: maximum of all calls in progress, of each caller.
        refused: number of calls refused so far.
    """

    def __init__(self, limit: int, connections: int) -> None:
        self.limit = limit
        self.most = max(1, min(2 * limit, connections // 2))
        self.refused = 0
        self._all: Counter[str] = Counter()
        self._open: Counter[tuple[str, Kind]] = Counter()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def count(self, kind: Kind) -> int:
        """Number of open calls of this kind, of all callers."""
        return sum(number for (_, known), number in self._open.items() if known == kind)

    def turn(self, caller: str) -> asyncio.Semaphore:
        """The turns of a caller, which waiting calls get in their order."""
        return self._turns.setdefault(caller, asyncio.Semaphore(WORKED_ON))

    def admit(self, scope: MutableMapping[str, Any]) -> None:
        """Count a call until its answer is sent. Raises TooManyCalls if its caller has too many in progress."""
        caller = scope.get("caller", "")
        if self._all[caller] >= self.most:
            self._refuse(f"{self.most} calls of this key are in progress, as many as the limit allows; try again later")
        self._all[caller] += 1
        at_end: ExitStack = scope[AT_END]
        at_end.callback(_uncount, self._all, caller)

    async def take_turn(self, scope: MutableMapping[str, Any]) -> None:
        """Wait for the call's turn, and hold it until the answer is sent or `enter` is called."""
        turn = self.turn(scope.get("caller", ""))
        await turn.acquire()
        scope[_TURN] = turn
        at_end: ExitStack = scope[AT_END]
        at_end.callback(_release, scope)

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
        at_end: ExitStack = scope[AT_END]
        at_end.callback(_uncount, self._open, (caller, kind))

    def _refuse(self, detail: str) -> NoReturn:
        self.refused += 1
        raise TooManyCalls(detail, retry_after=RETRY_SECONDS)


class Turns:
    """A lock for each caller: of one key's long steps on the event loop, one runs between two steps of the others.

    A step under it should end or let the loop go on within a few milliseconds.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, caller: str) -> asyncio.Lock:
        """The lock of this caller; "" are all callers without a key. Waiting tasks get it in their order."""
        return self._locks.setdefault(caller, asyncio.Lock())


def _release(scope: MutableMapping[str, Any]) -> None:
    turn = scope.pop(_TURN, None)
    if turn is not None:
        turn.release()


def _uncount(counter: "Counter[Any]", key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
