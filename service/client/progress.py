"""Progress of a job, for callbacks."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from bestofn.service.client.events import (
    FinalsEvent,
    JobEvent,
    ProgressEvent,
    QueuedEvent,
    ResultEvent,
    SnapshotEvent,
    StartedEvent,
)
from bestofn.service.core.jobs import ENDED, JobStatus
from bestofn.service.core.schemas import CandidateOut, FinalsProgress, JobResult


class Progress(BaseModel):
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
    judged: int = 0
    num_samples: int
    steps: int = 0
    total_steps: int
    transformer_forwards: int = 0
    best: CandidateOut | None = None
    position: int | None = None
    estimated_wait_seconds: float | None = None
    finals: FinalsProgress | None = None

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
