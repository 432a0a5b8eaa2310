"""WorkerInfo: what a worker publishes about its model and judge, so that the API checks requests without torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from bestofn.judge.calibration import Calibration
from bestofn.service.core import jobs
from bestofn.service.core.jobs import Revision, Revisions

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]  # a story may come from anywhere: no source code


class PipelineCall(BaseModel):
    """Class and arguments of a diffusers pipeline.

    Attributes:
        name: class of the pipeline.
        dtype: dtype of its weights; float32: on a CPU, another: on a GPU.
        guidance: argument that takes the guidance scale; None: the call takes none.
        reads_negative: whether a negative prompt has an effect.
        arguments: further arguments with their values, the same in every call.
    """

    model_config = ConfigDict(frozen=True)
    name: Name
    dtype: Name
    guidance: Name | None
    reads_negative: bool
    arguments: dict[Name, bool | int] = Field(default={}, max_length=100)


class ModelInfo(BaseModel):
    """Call defaults and limits of a generator. Sizes are in pixels.

    Attributes:
        revision: name and revision of the checkpoint.
        max_size: longest side of an image.
        size_multiple: both sides are multiples of this.
        token_limit: tokens of a prompt, control tokens included, as `tokenizer_sha256` counts them.
        tokenizer_sha256: hash of the tokenizer.json; Redis holds the file under it.
        known_words: vocabulary of the model; None: open.
        tflops_per_forward: one sample through the transformer at the default size.
        tflops_per_decode: one image through the decoder at the default size.
        depth: number of layers; None: of a pipeline, or published by an older worker.
        layer_order: layers by importance, the most important first; None: all layers always run.
        tflops_per_layer: share of one layer in `tflops_per_forward`.
        guidance_embeds: whether guidance is an input of the model (SANA-Sprint), so no negative prompt is read.
        pipeline: the diffusers pipeline that draws; None: the slots of SANA.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    revision: Revision
    width: int
    height: int
    max_size: int
    size_multiple: int
    num_inference_steps: int
    guidance_scale: float
    token_limit: int
    tokenizer_sha256: str
    known_words: tuple[str, ...] | None = None
    tflops_per_forward: float
    tflops_per_decode: float
    depth: int | None = None
    layer_order: tuple[int, ...] | None = None
    tflops_per_layer: float = 0.0
    guidance_embeds: bool = False
    pipeline: PipelineCall | None = None

    @property
    def depths(self) -> list[int]:
        """Depths that a job may use, in ascending order; empty for a pipeline or an older worker."""
        return list(range(1 if self.layer_order else self.depth, self.depth + 1)) if self.depth else []

    def layers(self, depth: int | None) -> tuple[int, ...] | None:
        """The `depth` most important layers, in the order of the model; None: all."""
        return None if depth is None or self.layer_order is None else tuple(sorted(self.layer_order[:depth]))


class PromptLimit(BaseModel):
    """Longest prompt that a judge reads with an image of the generator's default size.

    Attributes:
        tokenizer_sha256: hash of the judge's tokenizer.json; Redis holds the file under it.
        question: text of the question, with `{prompt}` once.
        tokens: maximum tokens of the question with the prompt in it.
    """

    model_config = ConfigDict(frozen=True)
    tokenizer_sha256: str
    question: str
    tokens: int


class JudgeInfo(BaseModel):
    model_config = ConfigDict(frozen=True)
    revision: Revision
    tflops_per_forward: float
    calibration: Calibration | None = None
    prompt_limit: PromptLimit | None = None  # None: not known, of other judges than NVILA
    second: "JudgeInfo | None" = None  # used by jobs with rule lower_bound

    @property
    def revisions(self) -> tuple[Revision, Revision | None]:
        """Revisions of the judge and of the second one."""
        return self.revision, None if self.second is None else self.second.revision


class WorkerInfo(BaseModel):
    """One worker process. `capacity` is the number of candidates that it holds at once.

    `schema_version` is that of the jobs that it runs.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    worker: str
    host: str
    pid: int
    device: str
    capacity: int
    model: ModelInfo
    judge: JudgeInfo
    started_at: float  # Unix time of the queue server
    state: str = "ready"  # ready, busy, draining
    version: str | None = None  # version of bestofn; None: older than this field
    commit: str | None = None  # that its image was built from; None: no image
    pairwise_judge: str | None = None  # model of the pairwise judge; its address stays private
    schema_version: int = Field(default_factory=lambda: jobs.SCHEMA_VERSION)
    tflops_per_second: float | None = None  # recent speed of its device; None: no heat yet
    blocks: str | None = None  # which blocks serve: "compiled", or "eager" with the reason; None: never compiled

    @property
    def revisions(self) -> Revisions:
        """Revisions of its model, judge and second judge."""
        return self.model.revision, *self.judge.revisions
