"""What a worker needs of an engine; `engine.engine.Engine` is the real one, `engine.fake.FakeEngine` needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bestofn.service.core.jobs import Candidate, Heat, HeatOutcome
from bestofn.service.core.workers import JudgeInfo, ModelInfo


@dataclass(frozen=True, slots=True)
class Stepped:
    """One tick advanced `steps` candidate-steps of a job (a candidate needs num_inference_steps of them).

    `forwards` are the samples that went through the transformer for it: with guidance twice as many.
    """

    job: str
    heat: int
    steps: int
    forwards: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate has its verdict; `thumbnail` is a small WebP of it, only if the job asked."""

    job: str
    heat: int
    candidate: Candidate
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class HeatFinished:
    job: str
    outcome: HeatOutcome


@dataclass(frozen=True, slots=True)
class HeatFailed:
    """A heat could not be finished here; `reason` is for the user, in plain words. `final`: no attempt can succeed."""

    job: str
    heat: int
    reason: str
    final: bool = False


EngineEvent = Stepped | Judged | HeatFinished | HeatFailed


class Engine(Protocol):
    """One device. Not thread-safe: one thread calls all methods, except `cancel`, which any thread may call."""

    @property
    def model_info(self) -> ModelInfo: ...

    @property
    def judge_info(self) -> JudgeInfo: ...

    @property
    def tokenizer_files(self) -> Sequence[bytes]:
        """The tokenizer.json files whose hashes the infos of model and judges name; the model's comes first."""
        ...

    @property
    def slots(self) -> int:
        """Candidates that are denoised together."""
        ...

    @property
    def blocks(self) -> str | None:
        """Which blocks serve now: "compiled", or "eager" with the reason; None where none are ever compiled."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `tick` has work."""
        ...

    def room(self) -> int:
        """How many more candidates it would take now without letting the device wait (admitted ones are counted)."""
        ...

    def admit(self, heat: Heat) -> None:
        """Take a heat. Raises ValueError for a heat of another model or judge."""
        ...

    def cancel(self, job: str) -> None:
        """Drop everything of this job before the next tick; it then yields no more events."""
        ...

    def tick(self) -> list[EngineEvent]:
        """One transformer forward over all busy slots, and whatever decoding and judging became due."""
        ...

    def probe(self) -> None:
        """A moment's work on the device, which raises if it is lost; called while there is nothing else to do."""
        ...
