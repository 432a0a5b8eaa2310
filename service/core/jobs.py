"""Jobs, heats and candidates: the specification of a job, its statuses, and the outcome of a heat."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bestofn.judge.calibration import Calibration
from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE, HeatSchedule
from bestofn.service.core.request_model import Draft as Draft
from bestofn.service.core.request_model import Finals as Finals
from bestofn.service.core.request_model import Plan as Plan
from bestofn.service.core.request_model import Stop as Stop

SCHEMA_VERSION = 6
"""Version of the stored form of jobs: raised with every change of `JobSpec` or of what a worker makes of it.

Workers run jobs of their own version only. During an upgrade old workers finish the old jobs."""

THUMBNAILS_KEPT = 512  # thumbnails of a job: those of its first candidates


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


ACTIVE = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})
ENDED = frozenset(JobStatus) - ACTIVE

ImageFormat = Literal["png", "webp", "jpeg"]
Priority = Literal["interactive", "batch"]


LORA = "+lora:"  # before each LoRA's name in the name of a model
FP8_DRAFTS = "+fp8-drafts"  # at the end of the revision of a generator with such drafts
CHECKED = "+checked-"  # in the revision of a judge whose images are checked, before the checker's own


class Revision(BaseModel):
    """A model or judge: the name that the operator deployed it under and the revision of its weights.

    LoRAs follow both after plus signs. So do, in the revision, settings that change the winner, such as FP8 drafts.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    revision: str

    def is_named(self, name: str) -> bool:
        """Whether a request's `name` means this one: the name alone, or with @ and the revision."""
        return name in (self.name, f"{self.name}@{self.revision}")

    @property
    def weights(self) -> str:
        """The revision of all weights that draw an image: of the checkpoint and its LoRAs."""
        return self.revision.removesuffix(FP8_DRAFTS)

    @property
    def checkpoint(self) -> "Revision":
        """The checkpoint without LoRAs and settings."""
        return Revision(name=self.name.partition(LORA)[0], revision=self.revision.partition("+")[0])

    @property
    def loras(self) -> list[str]:
        """Names of the LoRAs."""
        return self.name.split(LORA)[1:]


Revisions = tuple[Revision, Revision, Revision | None]  # model, judge, second judge


class SentImage(BaseModel):
    """An image that a caller sent to be judged: the name of its file ("": unknown), its format, its size in bytes."""

    model_config = ConfigDict(frozen=True)
    name: str = ""
    format: ImageFormat
    size: int


class JobSpec(BaseModel):
    """One job with every default filled in. The result depends on it and on the named checkpoints alone.

    Attributes:
        seed: candidate i is drawn from seed + i.
        layers: indices of the transformer's layers that run, ascending; None: all.
        draft_layers: the same for drafts.
        calibration: the judge's at submission, for jobs that may stop or that two judges decide.
        second_calibration: the second judge's, for jobs that two judges decide.
        heat_size: candidates of a heat; the first heats of a job that may stop are smaller.
        second_judge: second judge of the workers that may run the job; used with rule lower_bound.
        sent: the caller's images, which are judged instead of drawn candidates; empty: candidates are drawn.
        warnings: sentences for the caller.
        schema_version: `SCHEMA_VERSION` of the server that accepted the job; 0: older than this field.
    """

    model_config = ConfigDict(frozen=True)
    id: str
    prompt: str
    negative_prompt: str = ""
    num_samples: int
    top_k: int = 1
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    depth: int | None = None
    layers: tuple[int, ...] | None = None
    draft: Draft | None = None
    draft_layers: tuple[int, ...] | None = None
    stop: Stop | None = None
    calibration: Calibration | None = None
    second_calibration: Calibration | None = None
    finals: Finals | None = None
    rule: Rule = Rule.MARGIN
    format: ImageFormat = "png"
    priority: Priority = "interactive"
    heat_size: int = Field(default=DEFAULT_HEAT_SIZE, ge=1)
    deadline_seconds: float | None = None
    thumbnails: bool = False
    embed_prompt: bool | None = None
    model: Revision
    judge: Revision
    second_judge: Revision | None = None
    plan: Plan | None = None
    sent: tuple[SentImage, ...] = ()
    warnings: tuple[str, ...] = ()
    schema_version: int = Field(default_factory=lambda: SCHEMA_VERSION)

    @property
    def revisions(self) -> Revisions:
        """Revisions that a worker must hold to run the job."""
        return self.model, self.judge, self.second_judge

    @property
    def judges(self) -> tuple[tuple[Revision, Calibration | None], ...]:
        """The one or two judges that decide, each with its calibration."""
        first = (self.judge, self.calibration)
        if self.rule is not Rule.LOWER_BOUND or self.second_judge is None:
            return (first,)
        return first, (self.second_judge, self.second_calibration)

    def seed_of(self, candidate: int) -> int | None:
        """Seed of a candidate's noise; None: the caller sent its image."""
        return None if self.sent else self.seed + candidate

    def steps_of(self, *, draft: bool) -> int:
        """Denoising steps of a candidate's draft, or of its full solution."""
        return self.draft.num_inference_steps if draft and self.draft else self.num_inference_steps

    def format_of(self, candidate: int) -> ImageFormat:
        """Format of a candidate's image."""
        return self.sent[candidate].format if self.sent else self.format

    def has_thumbnail(self, candidate: int) -> bool:
        """Whether a thumbnail of this candidate is kept."""
        return self.thumbnails and candidate < THUMBNAILS_KEPT

    @property
    def num_images_kept(self) -> int:
        """Candidates in play: the best of those judged, whose images are kept."""
        return max(self.top_k, 0 if self.finals is None else self.finals.max_entrants)

    @property
    def schedule(self) -> HeatSchedule:
        """How the candidates are cut into heats."""
        keep = None if self.draft is None else self.draft.keep
        return HeatSchedule(self.num_samples, self.heat_size, self.stop is not None, keep)

    @property
    def total_steps(self) -> int:
        """Denoising steps of all candidates."""
        drafts = 0 if self.draft is None else self.num_samples * self.draft.num_inference_steps
        return drafts + self.schedule.num_promoted * self.num_inference_steps

    def heat(self, index: int) -> "Heat":
        """One heat.

        Args:
            index: 0 to `schedule.num_heats` - 1; one more for the finals, a heat without candidates.

        Raises:
            ValueError: the job has no such heat.
        """
        schedule = self.schedule
        if self.finals is not None and index == schedule.num_heats:
            return Heat(self, index, self.num_samples, 0)
        if index < 0 or not schedule.size(index):
            raise ValueError(f"heat {index} does not exist: job {self.id} has heats 0 to {schedule.num_heats - 1}")
        return Heat(self, index, schedule.first(index), schedule.size(index))

    def heats(self) -> Iterator["Heat"]:
        return map(self.heat, range(self.schedule.num_heats))


@dataclass(frozen=True, slots=True)
class Heat:
    """`count` consecutive candidates of one job, starting at `first`: the unit of queueing, leasing and retrying.

    `images` are the sent ones by candidate, as bytes, once a worker has fetched them.
    """

    job: JobSpec
    index: int
    first: int
    count: int
    images: Mapping[int, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_finals(self) -> bool:
        return self.count == 0

    @property
    def candidates(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def promoted(self) -> int:
        return self.job.schedule.promoted(self.count)

    @property
    def steps(self) -> int:
        """Denoising steps of all its candidates, drafts included."""
        drafts = 0 if self.job.draft is None else self.count * self.job.draft.num_inference_steps
        return drafts + self.promoted * self.job.num_inference_steps


@dataclass(frozen=True, slots=True)
class Candidate:
    """One judged candidate of a job.

    Attributes:
        seed: seed of its noise; None: its image was sent.
        verdict: last verdict: on the full solution, or on the draft if there is no full solution.
        draft: verdict on the draft, in jobs with drafts.
        solved_in_full: False: drafted only.
    """

    index: int
    seed: int | None
    verdict: Verdict
    draft: Verdict | None = None
    solved_in_full: bool = True

    @property
    def again(self) -> bool:
        """Whether this verdict replaces one on its draft."""
        return self.solved_in_full and self.draft is not None

    @property
    def has_image(self) -> bool:
        """Whether its image may be returned: it is solved in full and not unsafe."""
        return self.solved_in_full and not self.verdict.unsafe


@dataclass(frozen=True, slots=True)
class Usage:
    """Work of a heat or job. `transformer_forwards` counts samples through the transformer; guidance counts twice.

    `seconds` is the device's time by stage: text, denoise, decode, judge, encode. Jobs in one batch share its time.
    """

    candidates: int = 0
    transformer_forwards: int = 0
    judge_forwards: int = 0
    tflops: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "Usage") -> "Usage":
        stages = sorted({*self.seconds, *other.seconds})
        return Usage(
            self.candidates + other.candidates,
            self.transformer_forwards + other.transformer_forwards,
            self.judge_forwards + other.judge_forwards,
            self.tflops + other.tflops,
            {stage: self.seconds.get(stage, 0.0) + other.seconds.get(stage, 0.0) for stage in stages},
        )


@dataclass(frozen=True, slots=True)
class HeatOutcome:
    """Result of a finished heat: every verdict, and the encoded images of its own best candidates.

    The job's best candidates are among the best of each heat, so other images are dropped.
    """

    heat: int
    candidates: tuple[Candidate, ...]
    images: Mapping[int, bytes]  # candidate index -> bytes in the job's format
    usage: Usage
    warnings: tuple[str, ...] = ()
