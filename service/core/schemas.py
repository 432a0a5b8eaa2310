"""Wire schemas: the body of POST /generate and the answers about a job. Field names are the contract."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.core.budget import Budget, Effort
from bestofn.service.core.jobs import Draft, Finals, ImageFormat, JobStatus, Plan, Priority, Revision, Stop
from bestofn.service.core.request_model import Int64, RequestModel

MAX_SEED = 2**63 - 1
LEAST_SIZE = 32  # pixels of a side
RANDOM_SEEDS = 2**53  # random seeds stay exact in JavaScript and Lua


class GenerateRequest(RequestModel):
    """The body of POST /generate. Fields that are left out or null take the checkpoint's defaults."""

    prompt: str = Field(min_length=1, max_length=2000, examples=["a photo of a red star left of a blue circle"])
    negative_prompt: str = Field("", max_length=2000)
    num_samples: int = Field(
        16, strict=True, ge=1, description="N, the number of candidates drawn and judged.", examples=[32]
    )
    top_k: int = Field(1, strict=True, ge=1, le=16, description="Winners returned, best first; at most num_samples.")
    seed: Int64 | None = Field(
        default=None, strict=True, ge=0, le=MAX_SEED, description="Candidate i: seed + i; random if left out."
    )
    width: int | None = Field(default=None, strict=True, ge=LEAST_SIZE)
    height: int | None = Field(default=None, strict=True, ge=LEAST_SIZE)
    num_inference_steps: int | None = Field(default=None, strict=True, ge=1)
    guidance_scale: float | None = Field(default=None, strict=True, ge=0, allow_inf_nan=False)
    depth: int | None = Field(
        default=None, strict=True, ge=1, description="Number of the transformer's layers that run; all if left out."
    )
    draft: Draft | None = Field(
        default=None, description="Draft all candidates in few steps, solve the best share in full."
    )
    stop: Stop | None = Field(
        default=None, description="Stop once the best is probably right, or after many candidates without a yes."
    )
    effort: Effort | None = Field(
        default=None, description="A named choice of num_samples, draft and stop, in place of these fields."
    )
    budget: Budget | None = Field(
        default=None, description="Average cost of the job: num_samples, draft and stop are chosen for it."
    )
    model: str | None = None
    judge: str | None = None
    finals: Finals | None = Field(
        default=None, description="A knockout by the operator's pairwise judge among the leaders."
    )
    rule: Rule = Rule.MARGIN
    priority: Priority = "interactive"
    format: ImageFormat = "png"
    embed_prompt: bool | None = Field(
        None,
        strict=True,
        description="Write prompt and negative prompt into the winners' files; by default where they are not signed.",
    )
    deadline_seconds: float | None = Field(
        default=None,
        strict=True,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds after which the best so far is returned.",
    )
    thumbnails: bool = Field(
        False, strict=True, description="Keep a thumbnail of each candidate, at most 512 of a job."
    )
    webhook: str | None = Field(
        default=None,
        description="Address (https) that is called at the job's end, signed as Standard Webhooks has it.",
        examples=["https://example.net/hook"],
    )


def _is_none(value: object) -> bool:
    return value is None


class VerdictOut(BaseModel):
    """The judge's answer on one image; numbers that are not finite are null."""

    answer: str = Field(description="`yes`, `no`, `other`; `unsafe`: refused by the image checker.")
    yes_logit: float | None
    no_logit: float | None
    p_yes: float | None = Field(description="Probability of yes. With two judges: the smaller calibrated one.")
    second: "VerdictOut | None" = Field(
        default=None, exclude_if=_is_none, description="Verdict of the second judge, with rule `lower_bound`."
    )
    bound: float | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Smaller of both judges' calibrated log-odds, with rule `lower_bound`.",
    )

    @classmethod
    def of(cls, verdict: Verdict) -> "VerdictOut":
        return cls.model_validate(verdict.to_json())


class ImageOut(BaseModel):
    rank: int = Field(description="1 is the best.")
    candidate: int
    seed: Int64 | None = Field(description="null: the image was sent to be judged.")
    name: str | None = Field(default=None, exclude_if=_is_none, description="File name of a sent image.")
    verdict: VerdictOut
    url: str | None = Field(
        default=None,
        description="Needs no key for an hour or more. Relative to the server, unless BESTOFN_PUBLIC_URL is set.",
    )
    path: str | None = Field(default=None, description="File of a local run.")


class CandidateOut(BaseModel):
    index: int
    seed: Int64 | None = Field(description="null: the image was sent to be judged.")
    name: str | None = Field(default=None, exclude_if=_is_none, description="File name of a sent image.")
    verdict: VerdictOut = Field(description="Verdict on the full solution, or on the draft if there is no other.")
    rank: int
    solved_in_full: bool = Field(default=True, description="false: drafted only.")
    draft: VerdictOut | None = Field(default=None, description="The draft's verdict, in jobs with drafts.")
    thumbnail: str | None = Field(default=None, description="URL of the thumbnail, in jobs with thumbnails.")


class MatchOut(BaseModel):
    a: int
    b: int | None = Field(description="null: a bye.")
    winner: int


class FinalsMatchOut(BaseModel):
    a: int = Field(description="The candidate with the better verdict.")
    b: int | None = Field(description="null: a bye.")
    answers: list[int | None] = Field(
        description="Candidate that the judge named with `a` first, and with `b` first; null: neither."
    )
    winner: int = Field(description="The candidate that was named twice, else `a`.")


class FinalsOut(BaseModel):
    """The knockout among the leaders by a judge that compares two images at a time."""

    judge: str = Field(description="Name of the model.")
    rounds: list[list[FinalsMatchOut]] = Field(description="First round first.")


class FinalsProgress(FinalsOut):
    """Finals in progress: `rounds` are those played so far. Repeated finals are published from the start."""

    entrants: list[int] = Field(description="Candidates of the finals, best first by verdict.")

    @property
    def played(self) -> int:
        """Matches that are decided."""
        return sum(match.b is not None for matches in self.rounds for match in matches)

    @property
    def matches(self) -> int:
        """Matches in all."""
        return len(self.entrants) - 1


class UsageOut(BaseModel):
    candidates: int
    transformer_forwards: int
    judge_forwards: int
    tflops: float
    seconds: dict[str, float]
    discarded_forwards: int = Field(
        default=0,
        description="Further transformer forwards, for candidates that an early stop discarded.",
    )
    pairwise_calls: int = Field(default=0, description="Answers of the pairwise judge in `finals`, two a match.")


class JobProgress(BaseModel):
    """Progress of a job that waits or runs: candidates judged and denoising steps done."""

    judged: int = 0
    num_samples: int
    steps: int = 0
    total_steps: int
    transformer_forwards: int = Field(
        default=0, description="Samples through the transformer so far; guidance counts twice."
    )
    best: CandidateOut | None = None
    position: int | None = Field(default=None, description="Position among the waiting jobs; 1 is next.")
    estimated_wait_seconds: float | None = Field(
        default=None, description="Seconds until the job starts; null once it runs, or while no speed is known."
    )
    finals: FinalsProgress | None = Field(default=None, description="State of the finals while they are played.")


class JobResult(BaseModel):
    """A job at one moment. `bracket` and `candidates` are complete once it has ended."""

    model_config = ConfigDict(protected_namespaces=())
    id: str
    status: JobStatus
    prompt: str
    images: list[ImageOut] = []
    bracket: list[list[MatchOut]] = Field([], description="Rounds of the knockout, first round first.")
    finals: FinalsOut | None = Field(
        default=None, description="The finals that decided the first ranks, if they were played."
    )
    candidates: list[CandidateOut] = []
    unsafe: int = Field(default=0, description="Candidates refused by the image checker; their images are not kept.")
    next: str | None = Field(default=None, description="URL of the next page of candidates and bracket.")
    usage: UsageOut | None = None
    progress: JobProgress | None = None
    complete: bool = Field(default=False, description="false: a deadline ended the job before its last candidate.")
    stopped: str | None = Field(
        default=None,
        description="Reason of an early end: `confident`, `patience` or `deadline`; null: none.",
    )
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="Probability that the winner is right, in jobs with `stop`."
    )
    calibrated: bool | None = Field(
        default=None,
        description="true: `confidence` is fitted on labelled images; false: it is the judge's own `p_yes`.",
    )
    warnings: list[str] = []
    error: str | None = Field(default=None, description="Reason of the failure.")
    plan: Plan | None = Field(
        default=None, description="Options that effort or budget chose, with their expected cost."
    )
    parameters: dict[str, Any] = Field({}, description="Every field of the request with its default filled in.")
    model: Revision
    judge: Revision
    second_judge: Revision | None = Field(default=None, description="The second judge, with rule `lower_bound`.")


class ServerOut(BaseModel):
    """The queue's server. `max_memory_bytes` is null where it has no limit."""

    name: str
    version: str
    memory_bytes: Int64
    max_memory_bytes: Int64 | None
    policy: str
    append_only: bool


class LoadOut(BaseModel):
    """What waits or runs: candidates to be drawn yet, and the work that they take."""

    model_config = ConfigDict(from_attributes=True)
    jobs: int
    candidates: int
    tflops: float


class QueueOut(BaseModel):
    """`estimated_wait_seconds` is the time that all of it will take; null while the workers' speed is not known."""

    queued: int
    running: int
    by_priority: dict[Priority, LoadOut]
    oldest_wait_seconds: float
    estimated_wait_seconds: float | None
    image_bytes: Int64
    image_budget_bytes: Int64
    kept_bytes: Int64
    kept_budget_bytes: Int64
    dead_heats: int


class CallerOut(BaseModel):
    """What the jobs of the key that asks hold, each with its limit now: a share of what other keys leave.

    `candidates` and `tflops` wait or run, and `max_tflops` is null without BESTOFN_MAX_QUEUED_TFLOPS. `kept_bytes` are
    an upper bound of all that is kept of its jobs but images.
    """

    candidates: int
    max_candidates: int
    tflops: float
    max_tflops: float | None
    image_bytes: Int64
    max_image_bytes: Int64
    kept_bytes: Int64
    max_kept_bytes: Int64
