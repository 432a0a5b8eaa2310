"""Actions that a flow yields to its driver: a request, the next event of a stream, a pause, a message to the caller.

A flow is the client's policy, written once: a generator that yields actions. The driver sends back each result or
raises its error at the `yield`. `drivers` runs a flow with blocking calls or with awaited ones.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

T = TypeVar("T")


def job_path(job_id: str) -> str:
    """The path of a job, whatever characters the caller's id has: an id that names another path is no job."""
    return f"/jobs/{quote(job_id, safe='')}"


@dataclass(frozen=True, slots=True)
class Send:
    """One request; its outcome is the httpx.Response, read to its end, whatever its status.

    Attributes:
        data, files: a form's fields and files, in place of `json`.
        timeout: seconds; None: the client's.
        shielded: whether it is made even though its task is cancelled or the client is being closed; with `timeout`.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    data: Mapping[str, str] | None = None
    files: Sequence[tuple[str, tuple[str, bytes]]] | None = None
    timeout: float | None = None
    shielded: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """Open an event stream; its outcome is the httpx.Response, of which only an error's body has been read.

    A flow has one stream at a time: the one before is closed.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Next:
    """Its outcome is the next httpx_sse.ServerSentEvent of the open stream, or None at the stream's end."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the stream, if one is open."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the caller something; the callback's errors are raised in the flow."""

    value: Any


Action = Send | Open | Next | Close | Sleep | Emit
Flow = Generator[Action, Any, T]


class Cursor(Generic[T]):
    """A flow at its next action; `action` is None once it has ended with `value`."""

    value: T

    def __init__(self, flow: Flow[T]) -> None:
        self._flow = flow
        self.action: Action | None = None
        self.send(None)

    def send(self, outcome: Any) -> None:
        """Go on with what came of the action. Raises what the flow raises."""
        self._go_on(self._flow.send, outcome)

    def throw(self, error: BaseException) -> None:
        """Go on although the action failed. Raises what the flow raises, which often is that error."""
        self._go_on(self._flow.throw, error)

    def _go_on(self, step: Callable[[Any], Action], outcome: Any) -> None:
        try:
            self.action = step(outcome)
        except StopIteration as end:
            self.action, self.value = None, end.value
