"""Options of a job that have fields of their own: drafts, early stopping, finals, and the plan that chose them."""

from pydantic import BaseModel, ConfigDict, Field

from bestofn.service.core.request_model import RequestModel


class Draft(RequestModel):
    """Drafts: each candidate's noise is solved in few steps and judged; the best of each heat are solved in full."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    num_inference_steps: int = Field(
        4, strict=True, ge=1, description="Steps of a draft; fewer than those of a full solution."
    )
    keep: float = Field(
        0.125, strict=True, gt=0, le=1, description="Share of a heat that is solved in full, at least one."
    )
    depth: int | None = Field(
        default=None,
        strict=True,
        ge=1,
        exclude_if=lambda depth: depth is None,
        description="Number of layers that a draft uses; those of a full solution if left out.",
    )


class Stop(RequestModel):
    """Early stopping: rules that are checked after each heat, over all candidates so far."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    confidence: float = Field(
        0.97,
        strict=True,
        gt=0,
        lt=1,
        description="Stop at this calibrated probability that the best candidate is right. If left out: 0.97 of the "
        "greatest probability that the judge's calibration gives.",
    )
    min_samples: int = Field(4, strict=True, ge=1, description="Minimum candidates before a job may stop.")
    patience: int = Field(64, strict=True, ge=1, description="Candidates without a yes after which the job stops.")


class Finals(RequestModel):
    """Finals: a knockout by the operator's pairwise judge among the candidates close to the leader."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    max_entrants: int = Field(4, strict=True, ge=2, le=16, description="Maximum number of candidates in the finals.")
    margin: float = Field(1.0, strict=True, ge=0, description="Maximum distance to the leader, in log-odds.")


class Plan(BaseModel):
    """Options chosen for an effort or a budget, with their expected cost."""

    model_config = ConfigDict(frozen=True)
    num_samples: int
    draft: Draft | None = None
    stop: Stop | None = None
    expected_tflops: float = Field(description="Expected work; `usage` holds the actual work.")
    at_most_tflops: float = Field(description="Work if the job does not stop early.")
    score_on_shapes: float = Field(description="Share of correct winners on the shapes benchmark with these options.")
