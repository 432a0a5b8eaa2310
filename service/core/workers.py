"""Cards: what a warm worker tells the API of its model and judge, so that requests are checked without torch."""

from pydantic import BaseModel, ConfigDict

from bestofn.judge.calibration import Calibration
from bestofn.service.core.jobs import Revision, Revisions


class ModelInfo(BaseModel):
    """A generator's call defaults and limits. Sizes are in pixels."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    revision: Revision
    width: int
    height: int
    max_size: int
    size_multiple: int
    num_inference_steps: int
    guidance_scale: float
    token_limit: int  # tokens of the user's prompt, control tokens included, as `tokenizer` counts them
    tokenizer_sha256: str  # of the tokenizer.json that counts them; the file stands in Redis under this hash
    known_words: tuple[str, ...] | None = None  # None: open vocabulary
    tflops_per_forward: float  # one sample through the transformer at the default size
    tflops_per_decode: float
    depth: int | None = None  # blocks of the transformer, the most that a job may ask for; None: an older worker
    layer_order: tuple[int, ...] | None = None  # from the most important on; None: the greatest depth is the only one
    tflops_per_layer: float = 0.0  # of `tflops_per_forward`

    @property
    def depths(self) -> list[int]:
        """What a job may ask for, the greatest last; empty of an older worker."""
        return list(range(1 if self.layer_order else self.depth, self.depth + 1)) if self.depth else []

    def layers(self, depth: int | None) -> tuple[int, ...] | None:
        """The `depth` most important blocks, in the order of the model; None: all."""
        return None if depth is None or self.layer_order is None else tuple(sorted(self.layer_order[:depth]))


class JudgeInfo(BaseModel):
    model_config = ConfigDict(frozen=True)
    revision: Revision
    tflops_per_forward: float
    calibration: Calibration | None = None
    second: "JudgeInfo | None" = None  # asked beside it by jobs with rule lower_bound


class WorkerInfo(BaseModel):
    """One worker process. `capacity` is how many candidates it holds at once."""

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
    version: str | None = None  # of bestofn; None: older than this field
    pairwise_judge: str | None = None  # the model that it asks in finals; not where
    tflops_per_second: float | None = None  # that its device has lately done; None: nothing yet

    @property
    def revisions(self) -> Revisions:
        """What it holds."""
        return (
            self.model.revision,
            self.judge.revision,
            None if self.judge.second is None else self.judge.second.revision,
        )
