"""A job's events as a stream of server-sent events: live, resumable, and the same for every reader."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, replace
from typing import Annotated, Any

import redis.exceptions
import structlog
from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from bestofn.service.api.dependencies import Context, ContextDep, JobId
from bestofn.service.api.event_translation import EventTranslator, JobEvent, Place, place_of
from bestofn.service.api.problem_details import document
from bestofn.service.api.responses import failure_of, result_of
from bestofn.service.api.sse import EventStream, ServerSentEvent, stream_response
from bestofn.service.api.wait import end_tasks
from bestofn.service.core.errors import JobGone, JobNotFound, JobUnreadable
from bestofn.service.core.jobs import JobSpec
from bestofn.service.core.schemas import JobResult
from bestofn.service.queue.codec import ENDINGS, Event

POSITION_SECONDS = 1.0  # a waiting job's place is looked up this often
RETRY_MS = 1000  # browsers come back after this long

LastEventId = Annotated[str | None, Header(description="Resume after the event with this id.")]
log = structlog.get_logger()


router = APIRouter()


@router.get("/jobs/{job_id}/events", response_class=EventStream, summary="A job's events, up to its result")
async def read_events(
    request: Request, context: ContextDep, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """Server-sent events: `queued`, `started`, `progress`, `candidate`, `match`, `finals`; last `result` or `error`.

    `Last-Event-ID` resumes after that event, without a gap and without repetition. If the server no longer has the
    missed events, the stream starts with a `snapshot` of the job. The stream can be read as long as the result.
    """
    context.open_calls.enter(request.scope, "stream")
    spec = await context.queue.spec(job_id)  # before the stream begins, so that an unknown job is a 404
    return stream_response(job_events(context, spec, last_event_id), {})


async def job_events(
    context: Context, spec: JobSpec, last: str | None, *, cancel: bool = False
) -> AsyncGenerator[ServerSentEvent, None]:
    """A job's events after the one with id `last`, for one reader.

    Args:
        context: of this process.
        spec: the job.
        last: id of the last event that the reader has; None: none.
        cancel: cancel the job if the reader leaves before its end.
    """
    ended = False
    try:
        async with contextlib.aclosing(follow(context, spec, place_of(last))) as events:
            async for event in events:
                ended = event.type in ("result", "error")
                yield ServerSentEvent(event.type, event.data, event.id, RETRY_MS)
    except (JobGone, JobNotFound, JobUnreadable) as error:  # it went or became unreadable while it was read
        ended = True
        problem = document(error.status, error.code, error.detail) | {"job": spec.id}
        yield ServerSentEvent("error", problem, retry_ms=RETRY_MS)
    except redis.exceptions.RedisError as error:  # the reader reconnects, and then gets the reason
        log.warning("the queue was lost under a stream", job=spec.id, error=str(error))
    finally:
        if cancel and not ended and not context.stopping.is_set():
            context.later(context.queue.cancel(spec.id))


async def follow(context: Context, spec: JobSpec, after: Place | None) -> AsyncGenerator[JobEvent, None]:
    """A job's events after the one at `after`, as they come, up to its end or the server's.

    Stored events are translated from the first one on, so that all readers get the same events. If the first ones are
    no longer stored, or the reader was too slow for them, a snapshot replaces them.
    """
    translator = EventTranslator(spec)
    position: dict[str, Any] | None = None  # while the job waits
    first = True
    async with contextlib.aclosing(_paced(context, spec.id)) as stored:
        async for event in stored:
            if event is None:
                if position is not None and (now := await _position(context, spec)) != position:
                    position = now
                    yield JobEvent("queued", now)
                continue
            if (first and event.type != "queued") or translator.missed(event):
                translator, after = EventTranslator(spec), None
                async for translated in _snapshot(context, spec, translator):
                    yield translated
            first, position = False, None
            ended = event.type in ENDINGS
            for translated in [await _ending(context, spec, event)] if ended else translator.translate(event):
                if translated.type == "queued":
                    position = await _position(context, spec)
                    translated = replace(translated, data=position)
                if after is None or _place(translated) > after:
                    yield translated
            if ended:
                return


async def _snapshot(context: Context, spec: JobSpec, translator: EventTranslator) -> AsyncIterator[JobEvent]:
    """The whole job, without an id: a stream that has lost events always starts with another snapshot."""
    record = await context.queue.record(spec.id)
    yield JobEvent("snapshot", _json(await result_of(context, spec.id)))
    for translated in translator.catch_up(candidate for outcome in record.outcomes for candidate in outcome.candidates):
        yield translated


async def _position(context: Context, spec: JobSpec) -> dict[str, Any]:
    return {"job": spec.id, **asdict(await context.queue.position(spec))}


async def _ending(context: Context, spec: JobSpec, event: Event) -> JobEvent:
    result = await result_of(context, spec.id)
    error = failure_of(result)
    if error is None:
        return JobEvent("result", _json(result), f"{event.id}.0")
    return JobEvent("error", document(error.status, error.code, error.detail) | {"job": spec.id}, f"{event.id}.0")


def _json(result: JobResult) -> dict[str, Any]:
    return result.model_dump(mode="json")


def _place(event: JobEvent) -> Place:
    place = place_of(event.id)
    assert place is not None
    return place


async def _paced(context: Context, job_id: str) -> AsyncGenerator[Event | None, None]:
    """The job's stored events, and None whenever nothing came for a while; ends when the server stops."""
    source = context.queue.events(job_id)
    stopping = asyncio.create_task(context.stopping.wait())
    coming: asyncio.Task[Event] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait(
                {coming, stopping}, timeout=POSITION_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if coming in done:
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield event
            elif stopping in done:
                return
            else:
                yield None
    finally:
        await end_tasks({stopping, *([coming] if coming else [])})
        await source.aclose()
