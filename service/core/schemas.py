"""The wire: what POST /generate takes and what every call about a job returns (field names are the contract)."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bestofn.judge.verdict import Rule, Verdict
from bestofn.service.core.budget import Budget, Effort
from bestofn.service.core.jobs import Draft, Finals, ImageFormat, JobStatus, Plan, Priority, Revision, Stop

MAX_SEED = 2**63
RANDOM_SEEDS = 2**53  # random seeds stay exact in JavaScript and Lua


class GenerateRequest(BaseModel):
    """The body of POST /generate. Fields that are left out take the checkpoint's defaults."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    prompt: str = Field(min_length=1, max_length=2000, examples=["a photo of a red star left of a blue circle"])
    negative_prompt: str = Field("", max_length=2000)
    num_samples: int = Field(
        16, strict=True, ge=1, description="N, the candidates that are drawn and judged.", examples=[32]
    )
    top_k: int = Field(1, strict=True, ge=1, le=16, description="Winners returned, best first; at most num_samples.")
    seed: int | None = Field(
        default=None, strict=True, ge=0, lt=MAX_SEED, description="Candidate i: seed + i; random if left out."
    )
    width: int | None = Field(default=None, strict=True, ge=32)
    height: int | None = Field(default=None, strict=True, ge=32)
    num_inference_steps: int | None = Field(default=None, strict=True, ge=1)
    guidance_scale: float | None = Field(default=None, strict=True, ge=0, allow_inf_nan=False)
    depth: int | None = Field(
        default=None, strict=True, ge=1, description="How many of the transformer's blocks draw; all if left out."
    )
    draft: Draft | None = Field(
        default=None, description="Draft all candidates in few steps, solve the best share in full."
    )
    stop: Stop | None = Field(
        default=None, description="End once the best is probably right, or the prompt seems hopeless."
    )
    effort: Effort | None = Field(
        default=None, description="Measured choices of num_samples, draft and stop, by name, instead of these fields."
    )
    budget: Budget | None = Field(
        default=None, description="What the job may cost on average: num_samples, draft and stop are planned for it."
    )
    model: str | None = None
    judge: str | None = None
    finals: Finals | None = Field(
        default=None, description="A knockout by the operator's pairwise judge among those close to the leader."
    )
    rule: Rule = Rule.MARGIN
    priority: Priority = "interactive"
    format: ImageFormat = "png"
    embed_prompt: bool = Field(
        True, strict=True, description="Write prompt and negative prompt into the winners' files."
    )
    deadline_seconds: float | None = Field(
        default=None, strict=True, gt=0, le=86_400, allow_inf_nan=False, description="The best so far is returned then."
    )
    thumbnails: bool = Field(
        False, strict=True, description="Keep small pictures of the candidates too (at most 512 of a job)."
    )


def _is_none(value: object) -> bool:
    return value is None


class VerdictOut(BaseModel):
    """The judge's answer on one image; numbers that are not finite are null."""

    answer: str
    yes_logit: float | None
    no_logit: float | None
    p_yes: float | None = Field(description="With a second verdict: of both judges, the smaller calibrated one.")
    second: "VerdictOut | None" = Field(
        default=None, exclude_if=_is_none, description="The second judge's, with rule `lower_bound`; else left out."
    )
    bound: float | None = Field(
        default=None, exclude_if=_is_none, description="With it: the smaller of both judges' calibrated log-odds."
    )

    @classmethod
    def of(cls, verdict: Verdict) -> "VerdictOut":
        def finite(x: float) -> float | None:
            return x if math.isfinite(x) else None

        return cls(
            answer=verdict.answer,
            yes_logit=finite(verdict.yes_logit),
            no_logit=finite(verdict.no_logit),
            p_yes=finite(verdict.p_yes),
            second=None if verdict.second is None else cls.of(verdict.second),
            bound=None if verdict.bound is None else finite(verdict.bound),
        )


class ImageOut(BaseModel):
    rank: int = Field(description="1 is the best.")
    candidate: int
    seed: int
    verdict: VerdictOut
    url: str | None = Field(default=None, description="Relative to the server.")
    path: str | None = Field(default=None, description="Of a local run.")


class CandidateOut(BaseModel):
    index: int
    seed: int
    verdict: VerdictOut = Field(description="Of the full solution, or of the draft if that is all there is.")
    rank: int
    solved_in_full: bool = Field(default=True, description="false: drafted only.")
    draft: VerdictOut | None = Field(default=None, description="The draft's verdict, in jobs with drafts.")
    thumbnail: str | None = Field(default=None, description="Relative url of a small picture, if they were asked for.")


class MatchOut(BaseModel):
    a: int
    b: int | None = Field(description="null: a bye.")
    winner: int


class FinalsMatchOut(BaseModel):
    a: int = Field(description="The better by its verdict.")
    b: int | None = Field(description="null: a bye.")
    answers: list[int | None] = Field(
        description="Whom the judge named with `a` shown first, and with `b` shown first; null: neither."
    )
    winner: int = Field(description="Who was named twice, else `a`.")


class FinalsOut(BaseModel):
    """The knockout among the leaders by a judge that sees two pictures at a time."""

    judge: str = Field(description="The model's name.")
    rounds: list[list[FinalsMatchOut]] = Field(description="First round first.")


class FinalsProgress(FinalsOut):
    """Finals that are being played: `rounds` are those played so far."""

    entrants: list[int] = Field(description="The candidates that meet, best first by their verdicts.")

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
        description="Transformer forwards, not counted above, for candidates that ran ahead when `stop` ended the job.",
    )
    pairwise_calls: int = Field(default=0, description="Answers of the pairwise judge in `finals`, two a match.")


class JobProgress(BaseModel):
    """Of a job that waits or runs: candidates judged, and denoising steps done, of all."""

    judged: int = 0
    num_samples: int
    steps: int = 0
    total_steps: int
    transformer_forwards: int = Field(
        default=0, description="Samples through the transformer so far; guidance counts twice."
    )
    best: CandidateOut | None = None
    position: int | None = Field(default=None, description="Among the jobs that wait; 1 is next.")
    estimated_wait_seconds: float | None = Field(
        default=None, description="Until the job starts; null once it has, or while no worker's speed is known."
    )
    finals: FinalsProgress | None = Field(default=None, description="While the leaders meet: who, and what is decided.")


class JobResult(BaseModel):
    """A job, at any moment of its life. `bracket` and `candidates` are filled when it has ended."""

    model_config = ConfigDict(protected_namespaces=())
    id: str
    status: JobStatus
    prompt: str
    images: list[ImageOut] = []
    bracket: list[list[MatchOut]] = Field([], description="Rounds of the knockout, first round first.")
    finals: FinalsOut | None = Field(default=None, description="What decided the first ranks, if it was played.")
    candidates: list[CandidateOut] = []
    next: str | None = Field(default=None, description="Relative url of the next page of candidates and bracket.")
    usage: UsageOut | None = None
    progress: JobProgress | None = None
    complete: bool = Field(default=False, description="Whether it ran as asked; false where a deadline cut it short.")
    stopped: str | None = Field(
        default=None,
        description="Why it ended: `confident`, `patience` or `deadline`; null: all candidates were judged.",
    )
    confidence: float | None = Field(
        default=None, ge=0, le=1, description="Probability that the winner is right, in jobs with `stop`."
    )
    calibrated: bool | None = Field(
        default=None, description="Whether `confidence` is fitted on labelled pictures, or the judge's own `p_yes`."
    )
    warnings: list[str] = []
    error: str | None = Field(default=None, description="Why the job failed.")
    plan: Plan | None = Field(default=None, description="What effort or budget chose, and its expected cost.")
    parameters: dict[str, Any] = Field({}, description="Every field of the request with its default filled in.")
    model: Revision
    judge: Revision
    second_judge: Revision | None = Field(default=None, description="With rule `lower_bound`: the other judge.")
