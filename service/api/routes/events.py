"""A job's events as a stream of server-sent events: live, resumable, and the same for every reader."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, TypeVar

import redis.exceptions
import structlog
from fastapi import APIRouter, Header, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse

from bestofn.service.api.access import caller_of
from bestofn.service.api.dependencies import Context, ContextDep, JobId
from bestofn.service.api.event_translation import EventTranslator, Place, StreamEvent, place_of
from bestofn.service.api.problem_details import document
from bestofn.service.api.responses import failure_of, result_of
from bestofn.service.core.errors import JobGone, JobNotFound, JobUnreadable
from bestofn.service.core.jobs import HeatOutcome, JobSpec
from bestofn.service.queue.codec import ENDINGS, Event
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.job_events import Entry, follow_entries, last_place

POSITION_SECONDS = 1.0  # a waiting job's place is looked up this often
TRANSLATED_AT_ONCE = 8  # events of a stream, before the event loop goes on
RETRY_MS = 1000  # browsers come back after this long
KEEP_ALIVE_SECONDS = 15.0  # proxies end a connection that is silent for longer than about 60 s
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

LastEventId = Annotated[str | None, Header(description="Resume after the event with this id.")]
T = TypeVar("T")

log = structlog.get_logger()


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"


router = APIRouter()


@router.get("/jobs/{job_id}/events", response_class=EventStream, summary="A job's events, up to its result")
async def read_events(
    request: Request, context: ContextDep, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """Server-sent events: `queued`, `started`, `progress`, `candidate`, `match`, `finals`; last `result` or `problem`.

    `Last-Event-ID` resumes after that event, without a gap and without repetition. If the server no longer has the
    missed events, the stream starts with a `snapshot` of the job. The stream can be read as long as the result. After
    the last event the answer is 204, after which a browser does not come back.
    """
    context.open_calls.enter(request.scope, "stream")
    return await stream_of(context, job_id, last_event_id, caller=caller_of(request))


async def stream_of(
    context: Context,
    job_id: str,
    last: str | None,
    *,
    caller: str,
    cancel: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The job's events after the one with id `last`, as `job_events` has them; 204 if that was the last one.

    Raises:
        JobNotFound, JobGone: there is no such job.
    """
    spec = await context.queue.spec(job_id)  # before the stream begins, so that an unknown job is a 404
    place = place_of(last)
    if place is not None and place[:2] == await last_place(context.queue, job_id):
        return Response(status_code=204, headers=headers)
    return stream_response(job_events(context, spec, last, caller=caller, cancel=cancel), dict(headers or {}))


async def job_events(
    context: Context, spec: JobSpec, last: str | None, *, caller: str, cancel: bool = False
) -> AsyncGenerator[bytes, None]:
    """A job's events after the one with id `last`, encoded, for one reader, up to the job's end or the server's.

    Stored events are translated from the first one on, so that all readers get the same events. If the first ones are
    no longer stored, or the reader was too slow for them, a snapshot replaces them.

    Args:
        context: state of this process.
        spec: the job.
        last: id of the last event that the reader has; None: none.
        caller: name of the API key; its streams take turns on the event loop.
        cancel: cancel the job if the reader leaves before its end.
    """
    reader = _Reader(context, spec, place_of(last))
    source = follow_entries(context.queue, spec.id)
    ended = False
    try:
        async with contextlib.aclosing(paced(source, POSITION_SECONDS, context.stopping)) as stored:
            async for entries in stored:
                for part in parts(entries) if entries else [[None]]:
                    async with context.turns.of(caller):
                        events = [event for entry in part for event in await reader.translate(entry)]
                    for batch in parts(events):
                        ended = batch[-1].type in ("result", "problem")
                        async with context.turns.of(caller):
                            encoded = b"".join(encode(event.type, event.data, event.id, RETRY_MS) for event in batch)
                        yield encoded
    except (JobGone, JobNotFound, JobUnreadable) as error:  # it went or became unreadable while it was read
        ended = True
        problem = document(error.status, error.code, error.detail) | {"job": spec.id}
        yield encode("problem", problem, retry_ms=RETRY_MS)
    except redis.exceptions.RedisError as error:  # the reader reconnects, and then gets the reason
        log.warning("the queue was lost under a stream", job=spec.id, error=str(error))
    finally:
        if cancel and not ended and not context.stopping.is_set():
            context.later(context.queue.cancel(spec.id))


class _Reader:
    """What one reader has got so far."""

    def __init__(self, context: Context, spec: JobSpec, after: Place | None) -> None:
        self._context = context
        self._spec = spec
        self._after = after
        self._translator = EventTranslator(spec, context.base)
        self._position: dict[str, Any] | None = None  # while the job waits
        self._first = True

    async def translate(self, entry: Entry | None) -> list[StreamEvent]:
        """The reader's events for a stored one; None: nothing came for a while."""
        if entry is None:
            return await self._wait()
        event, found = Event.read(*entry), []
        if (self._first and event.type != "queued") or self._translator.missed(event):
            self._translator, self._after = EventTranslator(self._spec, self._context.base), None
            found += await _snapshot(self._context, self._spec, self._translator)
        self._first, self._position = False, None
        if event.type in ENDINGS:
            translated = [await _ending(self._context, self._spec, event)]
        else:
            translated = list(self._translator.translate(event))
        for one in translated:
            if one.type == "queued":
                self._position = await _position(self._context, self._spec)
                one = replace(one, data=self._position)
            place = place_of(one.id)
            if self._after is None or (place is not None and place > self._after):
                found.append(one)
        return found

    async def _wait(self) -> list[StreamEvent]:
        if self._position is None or (now := await _position(self._context, self._spec)) == self._position:
            return []
        self._position = now
        return [StreamEvent("queued", now)]


def parts(events: Sequence[T]) -> Iterator[Sequence[T]]:
    return (events[i : i + TRANSLATED_AT_ONCE] for i in range(0, len(events), TRANSLATED_AT_ONCE))


async def _snapshot(context: Context, spec: JobSpec, translator: EventTranslator) -> list[StreamEvent]:
    """The whole job, without an id: a stream that has lost events always starts with another snapshot."""
    record = await context.queue.record(spec.id)
    snapshot = (await result_of(context, spec.id)).model_dump(mode="json")
    return [StreamEvent("snapshot", snapshot), *await catch_up(translator, record.outcomes)]


async def catch_up(translator: EventTranslator, outcomes: Iterable[HeatOutcome]) -> list[StreamEvent]:
    """The matches that all candidates of some heats decide; the event loop goes on meanwhile."""
    events: list[StreamEvent] = []
    for part in parts([candidate for outcome in outcomes for candidate in outcome.candidates]):
        events += translator.catch_up(part)
        await asyncio.sleep(0)
    return events


async def _position(context: Context, spec: JobSpec) -> dict[str, Any]:
    return {"job": spec.id, **asdict(await context.queue.position(spec))}


async def _ending(context: Context, spec: JobSpec, event: Event) -> StreamEvent:
    result = await result_of(context, spec.id)
    error = failure_of(result)
    if error is None:
        return StreamEvent("result", result.model_dump(mode="json"), f"{event.id}.0")
    return StreamEvent("problem", document(error.status, error.code, error.detail) | {"job": spec.id}, f"{event.id}.0")


async def paced(
    source: AsyncGenerator[T, None], seconds: float, stopping: asyncio.Event | None = None
) -> AsyncGenerator[T | None, None]:
    """What a source yields, and None whenever nothing came for a while. The source is closed at the end.

    Args:
        source: for this reader alone.
        seconds: until a None.
        stopping: ends it once set, as the source's end does; None: nothing else does.
    """
    over = set() if stopping is None else {asyncio.create_task(stopping.wait())}
    coming: asyncio.Task[T] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait({coming, *over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                try:
                    item = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield item
            elif done:
                return
            else:
                yield None
    finally:
        # A task of its own: Starlette cancels the stream of a caller who has gone at every step, this one included.
        ending = asyncio.create_task(_end(source, {*over, *([coming] if coming else [])}))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ending)


async def _end(source: AsyncGenerator[Any, None], tasks: set[asyncio.Task[Any]]) -> None:
    await end_tasks(tasks)
    await source.aclose()


def encode(type: str, data: Any, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """An event as it is sent, its data as JSON."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=type, id=id, retry=retry_ms)


def stream_response(events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> EventStream:
    """Send encoded events as they come. The generator is closed at the end of the stream.

    Args:
        events: events of one reader, one or several at once.
        headers: sent with the status 200, before the first event.
    """
    return EventStream(_kept_alive(events), headers=HEADERS | headers)


async def _kept_alive(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(paced(events, KEEP_ALIVE_SECONDS)) as coming:
        async for encoded in coming:
            yield format_sse_event(comment="keep-alive") if encoded is None else encoded
