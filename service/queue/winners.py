"""Winners of a job, read by themselves: without the heats of the other candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bestofn.service.core.jobs import Candidate, JobSpec, JobStatus
from bestofn.service.queue.codec import read_spec, unpack_leaders

if TYPE_CHECKING:
    from bestofn.service.queue.job_queue import Queue


@dataclass(frozen=True, slots=True)
class Winners:
    """A job's winners, best first; `spec` is None and there are none unless the job has succeeded."""

    status: JobStatus
    spec: JobSpec | None = None
    candidates: Sequence[Candidate] = ()


async def read_winners(queue: "Queue", job: str) -> Winners:
    """Read the winners of a job. Raises JobNotFound, JobGone, JobUnreadable."""
    text, status, stopped, leaders = await queue.redis.hmget(
        queue.keys("job", job), ["spec", "status", "stopped", "leaders"]
    )
    if status is None:
        await queue.missing(job)
    state = JobStatus(status.decode())
    if state is not JobStatus.SUCCEEDED:
        return Winners(state)
    spec = read_spec(text)
    order: Sequence[Candidate]
    if stopped == b"deadline":  # the stored leaders are those of the decided prefix alone
        record = await queue.record(job)
        order = record.ranking.order if record.ranking is not None else ()
    else:
        order = unpack_leaders(spec, leaders)
    return Winners(state, spec, [candidate for candidate in order[: spec.top_k] if candidate.has_image])
