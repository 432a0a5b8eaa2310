"""A job's event stream that goes on where it broke off."""

import time

import httpx
from httpx_sse import ServerSentEvent

from bestofn.service.client.actions import Close, Flow, Next, Open, Sleep, job_path
from bestofn.service.client.events import ENDINGS, JobEvent, QueuedEvent, read_event
from bestofn.service.client.retries import call
from bestofn.service.core.backoff import backoff
from bestofn.service.core.errors import BestOfNError, Unavailable
from bestofn.service.core.version import VERSION

MEDIA_TYPE = "text/event-stream"
LIVED_SECONDS = 5.0  # a connection that lasted this long was no failure, even if nothing happened to the job


class Following:
    """The events of one job, each once and in order, over as many connections as it takes."""

    def __init__(self, server: str, job_id: str, after: str | None, reconnects: int) -> None:
        """`after` is the id of the last event that is known; None: from the first. `reconnects` is how often in a row
        a connection may be lost at once."""
        self.last = after
        self._server = server
        self._job = job_id
        self._limit = reconnects
        self._opened: float | None = None  # when the connection was made, if there is one
        self._ended = False
        self._lost = 0
        self._queued: tuple[int | None, float | None] | None = None

    def next(self) -> Flow[JobEvent | None]:
        """The next event, or None after the last.

        Raises:
            Unavailable: the connection was lost too often.
            JobNotFound, JobGone: there is no such job, or no longer.
        """
        while not self._ended:
            message = yield from self._message()
            if message is None:
                if self._ended:
                    break
                yield from self._pause()
                continue
            event = self._read(message)
            self._lost = 0
            self.last = message.id or self.last
            if event is None or self._repeats(event):
                continue
            if isinstance(event, ENDINGS):
                self._ended = True
                yield Close()
            return event
        return None

    def _message(self) -> Flow[ServerSentEvent | None]:
        """A message; None where the stream broke off (the connection is lost, the server stops) or has no more."""
        if self._opened is None:
            headers = {"Accept": MEDIA_TYPE, "Cache-Control": "no-store"}
            if self.last is not None:
                headers["Last-Event-ID"] = self.last
            stream = Open(f"{job_path(self._job)}/events", headers)
            response: httpx.Response = yield from call(stream, self._server, self._limit)
            if response.status_code == 204:
                self._ended = True
                return None
            if not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
                raise BestOfNError(f"{response.request.url} has no event stream: is it a bestofn server?")
            self._opened = time.monotonic()
        try:
            message: ServerSentEvent | None = yield Next()
        except httpx.TransportError:
            return None
        return message

    def _pause(self) -> Flow[None]:
        yield Close()
        if self._opened is not None and time.monotonic() - self._opened > LIVED_SECONDS:
            self._lost = 0
        self._opened = None
        if self._lost >= self._limit:
            raise Unavailable(f"{self._server} ended the stream of job {self._job} {self._lost + 1} times in a row")
        yield Sleep(backoff(self._lost))
        self._lost += 1

    def _read(self, message: ServerSentEvent) -> JobEvent | None:
        try:
            event = read_event(message)
        except ValueError as error:
            raise BestOfNError(
                f"{self._server} sent a {message.event!r} event that this version ({VERSION}) does not understand: "
                f"{error}"
            ) from error
        if event is not None and event.id == self.last:  # it has none: by the standard, the last one is then repeated
            return event.model_copy(update={"id": None})
        return event

    def _repeats(self, event: JobEvent) -> bool:
        """Whether it says what was said: a new connection begins with the place in the queue once more."""
        if not isinstance(event, QueuedEvent):
            return False
        before, self._queued = self._queued, (event.position, event.estimated_wait_seconds)
        return event.id is None and before == self._queued
