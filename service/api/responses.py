"""Answers about a job: its result as JSON with the headers that go with its state, or an image's bytes."""

from starlette.responses import Response

from bestofn.service.api.dependencies import Context
from bestofn.service.api.pagination import PAGE, page
from bestofn.service.core.errors import (
    BestOfNError,
    DeadlinePassed,
    ImageNotFound,
    JobCanceled,
    JobFailed,
    JobUnreadable,
)
from bestofn.service.core.jobs import ACTIVE, JobStatus
from bestofn.service.core.results import assemble, unreadable
from bestofn.service.core.schemas import ImageOut, JobResult

POLL_SECONDS = 1.0


async def result_of(context: Context, job_id: str) -> JobResult:
    """The job's result now, with a warning if a running job makes no progress.

    Raises:
        JobNotFound, JobGone: there is no such job.
        JobUnreadable: it has images, and this version cannot read its result.
    """
    try:
        record = await context.queue.record(job_id)
    except JobUnreadable as error:
        return unreadable(job_id, error)
    result = assemble(
        record.spec,
        record.status,
        record.outcomes,
        error=record.error,
        stopped=record.stopped,
        progress=record.progress,
        thumbnails=record.thumbnails,
        discarded_forwards=record.discarded_forwards,
        finals=record.finals,
    )
    if result.status in ACTIVE and (reason := await context.standstill.reason()) is not None:
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


def location_of(job_id: str) -> str:
    return f"/jobs/{job_id}"


def json_answer(
    result: JobResult, status: int = 200, headers: dict[str, str] | None = None, *, offset: int = 0, limit: int = PAGE
) -> Response:
    """A page of the result, with Location, Retry-After while the job goes on, and a Link to the next page."""
    shown = page(result, offset, limit)
    sent = {"Location": location_of(result.id), "Cache-Control": "no-store", **(headers or {})}
    if result.status in ACTIVE:
        sent |= {"Retry-After": f"{POLL_SECONDS:.0f}", "retry-after-ms": f"{1000 * POLL_SECONDS:.0f}"}
    if shown.next is not None:
        sent["Link"] = f'<{shown.next}>; rel="next"'
    return Response(shown.model_dump_json(), status, sent, "application/json")


async def image_answer(
    context: Context, result: JobResult, rank: int, headers: dict[str, str] | None = None
) -> Response:
    """The bytes of the image of this rank (1 is the best), with its seed and score in headers.

    Raises:
        ImageNotFound: the job has no image of this rank, or none yet.
    """
    image = next((image for image in result.images if image.rank == rank), None)
    if image is None:
        if result.status in ACTIVE:
            raise ImageNotFound(f"job {result.id} is still {result.status}; ask again", retry_after=POLL_SECONDS)
        raise ImageNotFound(
            f"job {result.id} {result.status} with {len(result.images)} images; there is no rank {rank}"
        )
    content = await context.queue.image(result.id, image.candidate)
    kind = str(result.parameters["format"])
    described = _describe(result, image)
    described["Content-Disposition"] = f'inline; filename="bestofn-{result.id}-{rank}.{kind}"'
    return Response(content, 200, described | (headers or {}), f"image/{kind}")


def _describe(result: JobResult, image: ImageOut) -> dict[str, str]:
    described = {
        "Location": location_of(result.id),
        "Cache-Control": "private, max-age=3600, immutable",
        "X-Bestofn-Job": result.id,
        "X-Bestofn-Rank": str(image.rank),
        "X-Bestofn-Candidate": str(image.candidate),
        "X-Bestofn-Seed": str(image.seed),
        "X-Bestofn-Answer": image.verdict.answer,
        "X-Bestofn-Model": f"{result.model.name}@{result.model.revision}",
        "X-Bestofn-Judge": f"{result.judge.name}@{result.judge.revision}",
    }
    if image.verdict.p_yes is not None:
        described["X-Bestofn-Score"] = f"{image.verdict.p_yes:.6f}"
    if result.warnings:
        described["X-Bestofn-Warning"] = "; ".join(result.warnings)[:1000]
    # Headers are Latin-1 at best, and names and warnings may hold anything.
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in described.items()}
