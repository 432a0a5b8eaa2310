"""Events of a job, one class for each type as its event stream sends them, and the progress that they lead to."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from httpx_sse import ServerSentEvent
from pydantic import BaseModel, ConfigDict

from bestofn.service.client.errors import error_from
from bestofn.service.core.errors import BestOfNError
from bestofn.service.core.jobs import ENDED, JobStatus
from bestofn.service.core.schemas import CandidateOut, FinalsProgress, JobProgress, JobResult, MatchOut, VerdictOut


class JobEvent(BaseModel):
    """One event of a job. `id` is its place in the stream, where another stream can go on; None: it keeps no place."""

    model_config = ConfigDict(frozen=True)
    type: ClassVar[str]
    id: str | None = None


class QueuedEvent(JobEvent):
    """The job waits, and again whenever its place (1 is next) or the estimated wait changes; None: not known."""

    type = "queued"
    job: str
    position: int | None = None
    estimated_wait_seconds: float | None = None


class StartedEvent(JobEvent):
    """A worker has taken the job's first heat."""

    type = "started"


class ProgressEvent(JobEvent):
    """How far the job is: candidates judged, denoising steps done, and the best so far."""

    type = "progress"
    judged: int
    num_samples: int
    steps: int
    total_steps: int
    transformer_forwards: int = 0
    best: CandidateOut | None = None


class CandidateEvent(JobEvent):
    """A candidate is judged; `thumbnail` is the url of its small image, if the job asked for them.

    A sent image has no `seed`; `name` is that of its file.
    """

    type = "candidate"
    index: int
    seed: int | None
    name: str | None = None
    verdict: VerdictOut
    thumbnail: str | None = None


class MatchEvent(JobEvent, MatchOut):
    """A match of the knockout is decided, `bracket[round][place]` of the result; `b` is None for a bye."""

    type = "match"
    round: int
    place: int


class FinalsEvent(JobEvent):
    """The leaders meet before the pairwise judge: how the finals stand, before each round of theirs.

    An event holds the whole state: finals that another worker repeats are sent again.
    """

    type = "finals"
    finals: FinalsProgress


class SnapshotEvent(JobEvent):
    """The whole job, where events were lost: it replaces all earlier events."""

    type = "snapshot"
    result: JobResult


class ResultEvent(JobEvent):
    """The job has succeeded; of a large one, this is the first page (`Client.result` reads them all)."""

    type = "result"
    result: JobResult


class ProblemEvent(JobEvent):
    """The job has failed, was canceled, missed its deadline, or has expired."""

    type = "problem"
    problem: Mapping[str, Any]

    @property
    def error(self) -> BestOfNError:
        """JobFailed, JobCanceled, DeadlinePassed or JobGone, to be raised."""
        return error_from(self.problem)


_KINDS: Mapping[str, type[JobEvent]] = {kind.type: kind for kind in JobEvent.__subclasses__()}
# The field that is all of the data.
_WHOLE = {"finals": "finals", "snapshot": "result", "result": "result", "problem": "problem"}
ENDINGS = (ResultEvent, ProblemEvent)


def read_event(message: ServerSentEvent) -> JobEvent | None:
    """A message of the stream; None if it is of a type that this version does not know.

    Raises:
        ValueError: its data is not what its type promises.
    """
    kind = _KINDS.get(message.event)
    if kind is None or not message.data:
        return None
    data = json.loads(message.data)
    whole = _WHOLE.get(message.event)
    return kind.model_validate({**(data if whole is None else {whole: data}), "id": message.id or None})


class Progress(JobProgress):
    """A job at one moment.

    Attributes:
        job: its id.
        judged: candidates that have their verdict, of `num_samples`.
        steps: denoising steps done, of `total_steps` of all candidates together.
        transformer_forwards: samples through the transformer; guidance counts twice.
        best: the leader so far.
        position: the job's place among those that wait, 1 is next; None once it runs, or where it is not known.
        estimated_wait_seconds: until it starts.
        finals: while the leaders meet: who, and what is decided.
    """

    model_config = ConfigDict(frozen=True)
    job: str
    status: JobStatus

    @property
    def fraction(self) -> float:
        """Of the denoising steps, or of the verdicts where nothing is drawn: 0 to 1."""
        return self.steps / self.total_steps if self.total_steps else self.judged / self.num_samples

    @classmethod
    def of(cls, result: JobResult) -> Self:
        """The progress of a job as it was read."""
        counted = {} if result.progress is None else result.progress.model_dump()
        N = int(result.parameters.get("num_samples", 1))
        steps = int(result.parameters.get("num_inference_steps", 0))
        return cls.model_validate(
            {"num_samples": N, "total_steps": N * steps, **counted, "job": result.id, "status": result.status}
        )

    def after(self, event: JobEvent) -> Self:
        """The progress once an event has happened; the same object if the event says nothing new of it.

        A stream that is read from its beginning repeats the past: a running job does not wait again.
        """
        match event:
            case QueuedEvent() | StartedEvent() if self.status is not JobStatus.QUEUED:
                return self
            case ProgressEvent(steps=steps) if steps < self.steps or self.status in ENDED:
                return self
            case QueuedEvent(position=position, estimated_wait_seconds=seconds):
                return self._at(JobStatus.QUEUED, position=position, estimated_wait_seconds=seconds)
            case StartedEvent():
                return self._at(JobStatus.RUNNING)
            case ProgressEvent():
                return self._at(JobStatus.RUNNING, **{name: value for name, value in event if name != "id"})
            case FinalsEvent(finals=finals) if self.status not in ENDED:
                return self._at(JobStatus.RUNNING, finals=finals)
            case SnapshotEvent(result=result) | ResultEvent(result=result):
                return self.of(result)
        return self

    def _at(self, status: JobStatus, **fields: object) -> Self:
        return self.model_copy(update={"status": status, "position": None, "estimated_wait_seconds": None} | fields)
