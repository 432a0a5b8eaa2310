"""Where a section of bench-gpu runs: a device, shapes true or tiny, and models made for it with random weights."""

import contextlib
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bestofn.judge.judge import Judge
from bestofn.models.fused_decoder import FusedUpsampling
from bestofn.models.linear_dit.config import LinearDiTConfig
from bestofn.models.linear_dit.model import LinearDiT
from bestofn.models.random_init.checkpoint import SANA_LAYOUTS, make_random_checkpoint
from bestofn.service.core.jobs import HeatOutcome, JobSpec
from bestofn.service.core.settings import Settings
from bestofn.service.engine.engine import Engine
from bestofn.service.engine.loader import load_engine
from bestofn.service.engine.protocol import HeatFailed, HeatFinished

GIB = 2**30
STAGES = ("text", "denoise", "decode", "judge", "encode")
T = TypeVar("T")
LAYOUTS = {"1.6B": "sana1.5-1.6b", "4.8B": "sana1.5-4.8b"}
PROMPT = "a photo of a red star left of a blue circle"
JUDGE = Path(__file__).parents[1] / "fixtures" / "vila" / "checkpoint"


@dataclass(frozen=True)
class Place:
    """A device, and whether everything is tiny, to see that it runs. Models are in bfloat16, on a CPU in float32."""

    device: torch.device
    tiny: bool
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32

    def pick(self, true: T, tiny: T) -> T:
        return tiny if self.tiny else true

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], T]) -> tuple[float, T]:
        """Seconds of one call, the device's work included, and what it returned."""
        self.wait()
        begun = time.perf_counter()
        result = call()
        self.wait()
        return time.perf_counter() - begun, result

    def seconds(self, call: Callable[[], object], runs: int = 5) -> float:
        """Median seconds of a call on the device, after one that warms it up; calls are queued without a pause."""
        call()
        if not self.cuda:
            return statistics.median(self.timed(call)[0] for _ in range(runs))
        event: Any = torch.cuda.Event
        marks = [event(enable_timing=True) for _ in range(runs + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        self.wait()
        return statistics.median(float(a.elapsed_time(b)) for a, b in itertools.pairwise(marks)) / 1e3

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Noise on the device: zeros would draw less power, and clock higher."""
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """Gives a call that tells the most GiB that torch held since, what recorded forwards reuse included; 0 on a
        CPU."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield lambda: torch.cuda.max_memory_reserved(self.device) / GIB if self.cuda else 0.0

    def free(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()


@torch.no_grad()
def draw(module: nn.Module, seed: int = 0) -> Any:
    """Draws a module's matrices where they lie; of what else is NaN, norms become 1 and biases 0."""
    for number, (name, value) in enumerate(module.named_parameters()):
        if value.ndim > 1:
            source = torch.Generator(value.device).manual_seed(seed + number)
            value.normal_(0.0, 1 / math.sqrt(math.prod(value.shape[1:])), generator=source)
        elif not torch.isfinite(value).all():
            value.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for child in module.modules():
        if isinstance(child, FusedUpsampling):
            child.sum_weights()
    return module


def config(place: Place, size: str) -> LinearDiTConfig:
    """The transformer's shape, of "1.6B" or "4.8B"."""
    return LinearDiTConfig.from_dict(
        SANA_LAYOUTS[place.pick(LAYOUTS[size], "tiny")]["transformer"] | _deeper(place, size)
    )


def transformer(place: Place, size: str) -> LinearDiT:
    """Made on the device, without a file, and packed as a GPU's is."""
    with torch.device("meta"):
        model = emptied(LinearDiT(config(place, size)), place)
    model.pack(place.device, place.dtype)
    return draw(model)  # type: ignore[no-any-return]


def emptied(model: nn.Module, place: Place) -> Any:
    """A model of the meta device in the place's memory, NaN all over."""
    model = model.to(place.dtype).to_empty(device=place.device).requires_grad_(False).eval()
    for value in model.parameters():
        value.fill_(math.nan)
    return model


def _deeper(place: Place, size: str) -> dict[str, Any]:
    return {"num_layers": 4} if place.tiny and size == "4.8B" else {}


def generator_folder(place: Place, size: str) -> Path:
    """A checkpoint whose matrices are holes, to be drawn on the device once it is loaded."""
    folder = place.folder / size
    if not folder.exists():
        changes = {"transformer": _deeper(place, size)} | place.pick({}, {"bestofn": {"complex_human_instruction": []}})
        make_random_checkpoint(place.pick(LAYOUTS[size], "tiny"), folder, None, changes)
    return folder


def judge_folder(place: Place) -> Path:
    """The same of the judge, which looks at one tile."""
    folder = place.folder / "judge"
    if not folder.exists():
        if place.tiny:
            shutil.copytree(JUDGE, folder)
        else:
            make_random_checkpoint("nvila-lite-2b", folder, None)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"min_tiles": 1, "max_tiles": 1}))
    return folder


def engine(place: Place, size: str, **settings: Any) -> Engine:
    """The engine of these models, as a worker loads it, its weights drawn."""
    device = "cuda:0" if place.cuda else "cpu"
    settings |= {"model": str(generator_folder(place, size)), "judge": str(judge_folder(place)), "devices": device}
    made = load_engine(Settings(**settings))
    assert isinstance(made, Engine)
    generator, judge = made.generator, nvila(made)
    parts = (generator.denoiser, generator.text_encoder, generator.decoder.vae, judge.model)
    for part in parts:
        draw(part)
    return made


def nvila(made: Engine) -> Judge:
    """The engine's judge."""
    judge = made._judge.get()
    assert isinstance(judge, Judge)
    return judge


def job(made: Engine, N: int, **fields: Any) -> JobSpec:
    """A job of N candidates with the checkpoint's own defaults."""
    info = made.model_info
    defaults: dict[str, Any] = {
        "id": "job",
        "prompt": PROMPT,
        "num_samples": N,
        "seed": 0,
        "width": info.width,
        "height": info.height,
        "num_inference_steps": info.num_inference_steps,
        "guidance_scale": info.guidance_scale,
        "model": info.revision,
        "judge": made.judge_info.revision,
    }
    return JobSpec(**(defaults | fields))


def run(made: Engine, *jobs: JobSpec) -> dict[str, list[HeatOutcome]]:
    """Runs jobs together to their end, their heats admitted as there is room; the outcomes by job."""
    waiting = [heat for spec in jobs for heat in spec.heats()]
    outcomes: dict[str, list[HeatOutcome]] = {spec.id: [] for spec in jobs}
    while waiting or made.busy:
        while waiting and (made.room() >= waiting[0].count or not made.busy):
            made.admit(waiting.pop(0))
        for event in made.tick():
            if isinstance(event, HeatFinished):
                outcomes[event.job].append(event.outcome)
            if isinstance(event, HeatFailed):
                raise RuntimeError(f"heat {event.heat} of {event.job}: {event.reason}")
    return outcomes


def stages(outcomes: Sequence[HeatOutcome]) -> dict[str, float]:
    """Seconds of each stage over heats."""
    return {stage: sum(outcome.usage.seconds.get(stage, 0.0) for outcome in outcomes) for stage in STAGES}
