"""Answers about a job: the wait for its end, its result as JSON with headers of its state, or an image's bytes."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from enum import Enum
from functools import partial

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
from bestofn.service.core.jobs import ACTIVE, Candidate, JobSpec, JobStatus
from bestofn.service.core.results import assemble, unreadable
from bestofn.service.core.schemas import CandidateOut, JobResult
from bestofn.service.queue.connection import end_tasks
from bestofn.service.queue.job_events import wait_for_end
from bestofn.service.queue.job_reader import read_winners

PAGE, MAX_PAGE = 256, 4096  # candidates and matches of a page: the default, and the most
POLL_SECONDS = 1.0
_CANDIDATES = TypeAdapter(list[CandidateOut])


async def result_of(
    context: Context, job_id: str, *, offset: int = 0, limit: int = PAGE, caller: str | None = None
) -> JobResult:
    """A page of the job's result now, with a warning if a running job makes no progress.

    Args:
        context: state of this process.
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
        secret, now = await context.queue.signing_key()
        for image in result.images:
            path = (image.url or "").removeprefix(context.base)
            image.url = context.base + sign(secret, path, now)
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
    TIME = "the time was up"
    STOPS = "the server stops"
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
    if hung_up in done:
        return Ending.HUNG_UP
    return Ending.STOPS if stopping in done else Ending.TIME


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
