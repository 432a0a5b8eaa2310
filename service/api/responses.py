"""Answers about a job, as Accept and Prefer ask for them: the wait for its end, and JSON or an image's bytes."""

import asyncio
import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import get_args

from fastapi import Request
from pydantic import TypeAdapter
from starlette.responses import Response

from bestofn.service.api.access import sign
from bestofn.service.api.dependencies import Context
from bestofn.service.core.errors import (
    BestOfNError,
    DeadlinePassed,
    ImageNotFound,
    JobCanceled,
    JobFailed,
    JobUnreadable,
)
from bestofn.service.core.jobs import ACTIVE, Candidate, ImageFormat, JobSpec, JobStatus
from bestofn.service.core.results import assemble, unreadable
from bestofn.service.core.schemas import CandidateOut, JobResult
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.job_events import wait_for_end
from bestofn.service.queue.job_reader import read_winners

PAGE, MAX_PAGE = 256, 4096  # candidates and matches of a page: the default, and the most
POLL_SECONDS = 1.0
_CANDIDATES = TypeAdapter(list[CandidateOut])
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
EVENTS = "text/event-stream"
_IMAGES: Mapping[str, ImageFormat | None] = {f"image/{name}": name for name in FORMATS} | {"image/*": None}
OFFERS = ", ".join(("application/json", *(f"image/{name}" for name in FORMATS), EVENTS))  # for errors


@dataclass(frozen=True, slots=True)
class Accepted:
    """Media types that a caller accepts among ours, most wanted first; `None` in `images`: any format."""

    json: bool
    images: tuple[ImageFormat | None, ...]
    image_first: bool
    events_first: bool


def read_accept(header: str | None) -> Accepted:
    """Read an Accept header (RFC 9110 section 12.5.1); no header accepts everything, and gets JSON.

    Among equal weights a named type goes before a wildcard, then the order of writing decides. `*/*` means JSON, since
    clients send it when they have no wish.
    """
    wanted: list[tuple[float, int, int, str]] = []
    for position, part in enumerate((header or "*/*").lower().split(",")):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if media and weight > 0:
            wanted.append((-weight, media.count("*"), position, media))
    images: list[ImageFormat | None] = []
    first: str | None = None
    json = False
    for *_, media in sorted(wanted):
        if media in ("application/json", "application/*", "*/*"):
            json, kind = True, "json"
        elif media in _IMAGES:
            images.append(_IMAGES[media])
            kind = "image"
        elif media == EVENTS:
            kind = "events"
        else:
            continue
        first = first or kind
    return Accepted(json, tuple(images), first == "image", first == "events")


def image_format(accepted: Accepted, named: ImageFormat | None, default: ImageFormat) -> ImageFormat | None:
    """The image format for a call for bytes: the body's, or Accept's if it names none; None if they contradict.

    A body that names the default contradicts nothing: generated clients send every default.
    """
    if named is not None and (named in accepted.images or None in accepted.images):
        return named
    if named not in (None, default):
        return None
    return accepted.images[0] or default


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """What a caller prefers.

    Attributes:
        seconds: how long to wait.
        applied: the Preference-Applied header that says so; None if no preference was given.
        cancel_on_disconnect: whether hanging up cancels the job; otherwise it goes on.
    """

    seconds: float
    applied: str | None
    cancel_on_disconnect: bool = False


def read_prefer(header: str | None, longest: float) -> Preference:
    """Read a Prefer header (RFC 7240): `respond-async` does not wait, `wait=n` waits n seconds, at most `longest`.

    With both, the wait comes first; `cancel-on-disconnect` goes with a wait. Unknown preferences are ignored, as the
    RFC asks.
    """
    parts = [part.strip() for part in re.split("[,;]", (header or "").lower())]
    waits = [part.partition("=")[2].strip().strip('"') for part in parts if re.match(r"wait\s*=", part)]
    cancels = "cancel-on-disconnect" in parts
    applied = ["cancel-on-disconnect"] if cancels else []
    if waits and waits[0].isdecimal() and len(waits[0]) < 10:
        seconds = min(float(waits[0]), longest)
        return Preference(seconds, ", ".join([f"wait={seconds:g}", *applied]), cancels)
    if "respond-async" in parts:
        return Preference(0.0, "respond-async")
    return Preference(longest, ", ".join(applied) or None, cancels)


async def result_of(
    context: Context, job_id: str, *, offset: int = 0, limit: int = PAGE, caller: str | None = None
) -> JobResult:
    """A page of the job's result now, with a warning if a running job makes no progress.

    Args:
        context: of this process.
        job_id: the job.
        offset: first candidate and match of the page.
        limit: candidates and matches of the page. More than `PAGE` are put together off the event loop.
        caller: name of the API key, which takes its turn for this; None: it is its turn already.

    Raises:
        JobNotFound, JobGone: there is no such job.
        JobUnreadable: it has images, and this version cannot read its result.
    """
    try:
        record = await context.queue.record(job_id)
    except JobUnreadable as error:
        return unreadable(job_id, error)
    build = partial(assemble, **vars(record), base=context.base, offset=offset, limit=limit)
    long = limit > PAGE and len(record.outcomes) * record.spec.heat_size > PAGE
    if long:
        result = await context.queue.reader.off_loop(caller or "", build)
    else:
        async with contextlib.nullcontext() if caller is None else context.turns.of(caller):
            result = build()
    if context.keyring.on and result.images:
        secret, start = await context.queue.signing_key(), len(context.base)
        for image in result.images:
            path = (image.url or "")[start:]
            image.url = context.base + sign(secret, path)
    if result.status in ACTIVE and (reason := await context.standstill()) is not None:
        result.warnings.append(f"{reason}; the job goes on when that is over")
    return result


def failure_of(result: JobResult) -> BestOfNError | None:
    """Why a job that has ended has no images; None if it has, or goes on."""
    match result.status:
        case JobStatus.FAILED:
            kind = DeadlinePassed if result.stopped == "deadline" else JobFailed
            return kind(result.error or "the job failed")
        case JobStatus.CANCELED:
            return JobCanceled("the job was cancelled")
        case _:
            return None


def json_answer(base: str, result: JobResult, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A page of the result, with Location, Retry-After while the job goes on, and a Link to the next page."""
    sent = {"Location": f"{base}/jobs/{result.id}", "Cache-Control": "no-store", **(headers or {})}
    if result.status in ACTIVE:
        sent |= {"Retry-After": f"{POLL_SECONDS:.0f}", "retry-after-ms": f"{1000 * POLL_SECONDS:.0f}"}
    if result.next is not None:
        sent["Link"] = f'<{result.next}>; rel="next"'
    return Response(_dump(result), status, sent, "application/json")


def _dump(result: JobResult) -> str:
    """The result as JSON. Candidates are written in parts: Pydantic holds the interpreter while it writes one."""
    if len(result.candidates) <= PAGE:
        return result.model_dump_json()
    whole = result.model_copy(update={"candidates": []}).model_dump_json()
    parts = (result.candidates[i : i + PAGE] for i in range(0, len(result.candidates), PAGE))
    written = ",".join(_CANDIDATES.dump_json(part)[1:-1].decode() for part in parts)
    before, empty, after = whole.partition('"candidates":[]')  # in a text its quotes would be escaped
    return f"{before}{empty[:-1]}{written}]{after}"


async def image_answer(
    context: Context, job_id: str, rank: int, *, warnings: Sequence[str] = (), headers: dict[str, str] | None = None
) -> Response:
    """The bytes of the image of this rank (1 is the best), with its seed and score in headers.

    Raises:
        JobNotFound, JobGone: there is no such job.
        JobUnreadable: this version cannot read it.
        ImageNotFound: the job has no image of this rank, or none yet.
    """
    winners = await read_winners(context.queue, job_id)
    if winners.spec is None or rank > len(winners.candidates):
        if winners.status in ACTIVE:
            raise ImageNotFound(f"job {job_id} is still {winners.status}; ask again", retry_after=POLL_SECONDS)
        number = len(winners.candidates)
        images = "1 image" if number == 1 else f"{number} images"
        raise ImageNotFound(f"job {job_id} {winners.status} with {images}; there is no rank {rank}")
    spec, candidate = winners.spec, winners.candidates[rank - 1]
    content = await context.queue.image(job_id, candidate.index)
    described = _describe(context, spec, rank, candidate, [*dict.fromkeys([*spec.warnings, *warnings])])
    kind = spec.format_of(candidate.index)
    described["Content-Disposition"] = f'inline; filename="bestofn-{job_id}-{rank}.{kind}"'
    return Response(content, 200, described | (headers or {}), f"image/{kind}")


def _describe(
    context: Context, spec: JobSpec, rank: int, candidate: Candidate, warnings: Sequence[str]
) -> dict[str, str]:
    described = {
        "Location": f"{context.base}/jobs/{spec.id}",
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Bestofn-Job": spec.id,
        "X-Bestofn-Rank": str(rank),
        "X-Bestofn-Candidate": str(candidate.index),
        "X-Bestofn-Answer": candidate.verdict.answer,
        "X-Bestofn-Model": f"{spec.model.name}@{spec.model.revision}",
        "X-Bestofn-Judge": f"{spec.judge.name}@{spec.judge.revision}",
    }
    if candidate.seed is not None:
        described["X-Bestofn-Seed"] = str(candidate.seed)
    if math.isfinite(candidate.verdict.p_yes):
        described["X-Bestofn-Score"] = f"{candidate.verdict.p_yes:.6f}"
    if warnings:
        described["X-Bestofn-Warning"] = "; ".join(warnings)[:1000]
    # Headers are Latin-1 at best, and names and warnings may hold anything.
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in described.items()}


class Ending(Enum):
    """Why a wait was over."""

    ENDED = "the job has ended"
    TIME = "the time was up, or the server stops"
    HUNG_UP = "the caller has gone"


async def wait(context: Context, request: Request, job_id: str, seconds: float = math.inf) -> Ending:
    """Wait until the job has ended, at most `seconds`.

    All waits of a process share one blocking read, so hundreds of callers may wait together.
    """
    if seconds <= 0:
        return Ending.TIME
    ended = asyncio.create_task(wait_for_end(context.queue, job_id))
    hung_up = asyncio.create_task(_hung_up(request))
    stopping = asyncio.create_task(context.stopping.wait())
    tasks = {ended, hung_up, stopping}
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=None if seconds == math.inf else seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        await end_tasks(tasks)
    if ended in done:
        ended.result()  # raises what went wrong: the queue was lost, say
        return Ending.ENDED
    return Ending.HUNG_UP if hung_up in done else Ending.TIME


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
