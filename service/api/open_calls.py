"""Limit of open calls for each key: calls that wait for a job, and event streams."""

from collections import Counter
from collections.abc import MutableMapping
from contextlib import ExitStack
from typing import Any, Literal

from bestofn.service.core.errors import TooManyCalls

Kind = Literal["wait", "stream"]
AT_END = "at_end"  # of an ASGI scope: an ExitStack that is closed after the answer
RETRY_SECONDS = 1.0


class OpenCalls:
    """Counts the waiting calls and event streams of one API process, by caller.

    Attributes:
        limit: maximum of both together, of each caller.
        refused: number of calls refused so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused = 0
        self._open: Counter[tuple[str, Kind]] = Counter()

    def count(self, kind: Kind) -> int:
        """Number of open calls of this kind, of all callers."""
        return sum(number for (_, known), number in self._open.items() if known == kind)

    def enter(self, scope: MutableMapping[str, Any], kind: Kind) -> None:
        """Count a call until its answer is sent.

        Args:
            scope: ASGI scope of the request, with its `caller` if keys are asked for.
            kind: what the call does.

        Raises:
            TooManyCalls: its caller has as many open calls as the limit allows.
        """
        caller = str(scope.get("caller", ""))
        number = self._open[caller, "wait"] + self._open[caller, "stream"]
        if number >= self.limit:
            self.refused += 1
            raise TooManyCalls(
                f"{number} waiting calls and event streams of this key are open, as many as the limit allows; "
                "try again when one has ended, or submit with `Prefer: respond-async` and poll GET /jobs/ID",
                retry_after=RETRY_SECONDS,
            )
        self._open[caller, kind] += 1
        at_end: ExitStack = scope[AT_END]
        at_end.callback(self._leave, caller, kind)

    def _leave(self, caller: str, kind: Kind) -> None:
        self._open[caller, kind] -= 1
        if not self._open[caller, kind]:
            del self._open[caller, kind]
