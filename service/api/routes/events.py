"""A job's events as a stream of server-sent events: live, resumable, and the same for every reader."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import redis.exceptions
import structlog
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from bestofn.service.api.access import caller_of
from bestofn.service.api.content_negotiation import read_accept, read_prefer
from bestofn.service.api.dependencies import Context, ContextDep, JobId
from bestofn.service.api.event_translation import EventTranslator, JobEvent, Place, place_of
from bestofn.service.api.json_body import JsonRoute
from bestofn.service.api.pagination import PAGE, page
from bestofn.service.api.problem_details import document
from bestofn.service.api.responses import failure_of, location_of, result_of
from bestofn.service.api.submission import submit
from bestofn.service.api.wait import end_tasks
from bestofn.service.core.errors import JobGone, JobNotFound
from bestofn.service.core.jobs import JobSpec
from bestofn.service.core.schemas import GenerateRequest, JobResult
from bestofn.service.queue.codec import ENDINGS, Event

STANDING_SECONDS = 1.0  # a waiting job's place is looked up this often
RETRY_MS = 1000  # browsers come back after this long

LastEventId = Annotated[str | None, Header(description="Resume after the event with this id.")]
log = structlog.get_logger()


class StreamRoute(JsonRoute):
    """A route for those callers only who would rather have events than anything else."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), None)
        return (match, child) if read_accept(header).events_first else (Match.NONE, {})


router = APIRouter()
streams = APIRouter(route_class=StreamRoute)  # goes before the routes of the same paths


@dataclass(frozen=True, slots=True)
class Followed:
    """A job that is about to be followed, and whether it ends with its reader."""

    spec: JobSpec
    cancel: bool = False


async def _known(context: ContextDep, job_id: JobId) -> Followed:
    """Looked up before the stream begins, so that a job that is not there is a 404."""
    return Followed(await context.queue.spec(job_id))


async def _submitted(
    request: Request,
    response: Response,
    context: ContextDep,
    body: GenerateRequest,
    prefer: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Followed:
    """Submitted before the stream begins, so that a refusal is a problem document with its status."""
    preference = read_prefer(prefer, context.settings.max_wait_seconds)
    job_id, created = await submit(context, body, caller=caller_of(request), key=idempotency_key)
    response.headers["Location"] = location_of(job_id)
    if preference.cancel_on_disconnect:
        response.headers["Preference-Applied"] = "cancel-on-disconnect"
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return Followed(await context.queue.spec(job_id), created and preference.cancel_on_disconnect)


@streams.post("/generate", response_class=EventSourceResponse, include_in_schema=False)
async def generate_events(
    context: ContextDep, followed: Annotated[Followed, Depends(_submitted)], last_event_id: LastEventId = None
) -> AsyncIterable[ServerSentEvent]:
    """The events of the job that the request asks for, up to its result."""
    async for event in _stream(context, followed, last_event_id):
        yield event


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, summary="A job's events, up to its result")
async def read_events(
    context: ContextDep, followed: Annotated[Followed, Depends(_known)], last_event_id: LastEventId = None
) -> AsyncIterable[ServerSentEvent]:
    """Server-sent events: `queued`, `started`, `progress`, `candidate`, `match`, `finals`; last `result` or `error`.

    `Last-Event-ID` resumes after that event, without a gap and without repetition; where the server no longer has what
    was missed, the stream starts with a `snapshot` of the job. The stream of a job that has ended can be read as long
    as its result is kept.
    """
    async for event in _stream(context, followed, last_event_id):
        yield event


async def _stream(context: Context, followed: Followed, last: str | None) -> AsyncIterator[ServerSentEvent]:
    ended = False
    try:
        async with contextlib.aclosing(follow(context, followed.spec, place_of(last))) as events:
            async for event in events:
                ended = event.type in ("result", "error")
                yield ServerSentEvent(event=event.type, data=event.data, id=event.id, retry=RETRY_MS)
    except (JobGone, JobNotFound) as error:  # it went while it was read
        ended = True
        problem = document(error.status, error.code, error.detail) | {"job": followed.spec.id}
        yield ServerSentEvent(event="error", data=problem, retry=RETRY_MS)
    except redis.exceptions.RedisError as error:  # the reader comes back, and is then told what is the matter
        log.warning("the queue was lost under a stream", job=followed.spec.id, error=str(error))
    finally:
        if followed.cancel and not ended and not context.stopping.is_set():
            context.later(context.queue.cancel(followed.spec.id))


async def follow(context: Context, spec: JobSpec, after: Place | None) -> AsyncGenerator[JobEvent, None]:
    """A job's events after the one at `after`, as they come, up to its end or the server's.

    The stored events are told from the first one on, whatever the reader already knows: so all readers are told the
    same. If the first ones are no longer stored, or the reader was too slow for them, a snapshot stands in for them.
    """
    teller = EventTranslator(spec)
    standing: dict[str, Any] | None = None  # while the job waits
    first = True
    async with contextlib.aclosing(_paced(context, spec.id)) as stored:
        async for event in stored:
            if event is None:
                if standing is not None and (now := await _standing(context, spec)) != standing:
                    standing = now
                    yield JobEvent("queued", now)
                continue
            if (first and event.type != "queued") or teller.missed(event):
                teller, after = EventTranslator(spec), None
                async for told in _snapshot(context, spec, teller):
                    yield told
            first, standing = False, None
            ended = event.type in ENDINGS
            for told in [await _ending(context, spec, event)] if ended else teller.tell(event):
                if told.type == "queued":
                    standing = await _standing(context, spec)
                    told = replace(told, data=standing)
                if after is None or _place(told) > after:
                    yield told
            if ended:
                return


async def _snapshot(context: Context, spec: JobSpec, teller: EventTranslator) -> AsyncIterator[JobEvent]:
    """The job as it stands, without an id: a stream that has lost events always starts with another snapshot."""
    record = await context.queue.record(spec.id)
    yield JobEvent("snapshot", _json(await result_of(context, spec.id)))
    for told in teller.catch_up(candidate for outcome in record.outcomes for candidate in outcome.candidates):
        yield told


async def _standing(context: Context, spec: JobSpec) -> dict[str, Any]:
    return {"job": spec.id, **asdict(await context.queue.standing(spec))}


async def _ending(context: Context, spec: JobSpec, event: Event) -> JobEvent:
    result = await result_of(context, spec.id)
    error = failure_of(result)
    if error is None:
        return JobEvent("result", _json(result), f"{event.id}.0")
    return JobEvent("error", document(error.status, error.code, error.detail) | {"job": spec.id}, f"{event.id}.0")


def _json(result: JobResult) -> dict[str, Any]:
    return page(result, 0, PAGE).model_dump(mode="json")


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
                {coming, stopping}, timeout=STANDING_SECONDS, return_when=asyncio.FIRST_COMPLETED
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
