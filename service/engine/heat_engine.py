"""Heats of one device: checks, admission, cancellation and outcomes, for every engine; the drawing is theirs."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator as Steps
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from bestofn.models.linear_dit.compiled import BackgroundCompilation
from bestofn.service.core.errors import SetupError
from bestofn.service.core.jobs import Heat, HeatOutcome
from bestofn.service.core.workers import JudgeInfo, ModelInfo
from bestofn.service.engine import scheduler as policy
from bestofn.service.engine.batch_sizes import Sizes
from bestofn.service.engine.heat_state import HeatWork, Owner
from bestofn.service.engine.judge_residency import JudgeResidency
from bestofn.service.engine.postprocess import Postprocess
from bestofn.service.engine.protocol import EngineEvent, HeatFailed, HeatFinished, Stepped
from bestofn.service.engine.side_stream import SideStream
from bestofn.service.engine.timing import Clock
from bestofn.service.host.cgroups import cores
from bestofn.service.media.provenance import Signer

ENCODERS = 4  # threads at most: a PNG of 1,024 px takes one 216 ms


class HeatEngine(ABC):
    """One device's heats, decoder and judge; `protocol.Engine` is the contract."""

    compilation: BackgroundCompilation | None = None
    _finishing: Postprocess

    def __init__(
        self,
        device: torch.device,
        judge: JudgeResidency,
        model_info: ModelInfo,
        judge_info: JudgeInfo,
        tokenizer_files: Sequence[bytes],
        sizes: Sizes,
        side_stream: SideStream | None = None,
        signer: Signer | None = None,
    ) -> None:
        """
        Args:
            device: device of generator and judge.
            judge: the judge.
            model_info, judge_info: infos to announce; heats for other revisions are refused.
            tokenizer_files: files whose hashes the infos name, the model's first.
            sizes: batch sizes.
            side_stream: stream of decoding and judging; None: chosen by the device.
            signer: signs the images that are returned.
        """
        self.device = device
        self.sizes = sizes
        self.model_info = model_info
        self.judge_info = judge_info
        self.tokenizer_files = tokenizer_files
        self._judge, self._signer = judge, signer
        self._waiting: tuple[policy.Waiting, ...] = ()
        self._heats: dict[Owner, HeatWork] = {}
        self._side_stream = side_stream or SideStream(device, one_queue=not judge.shared)
        self._encoder = ThreadPoolExecutor(min(ENCODERS, cores()), thread_name_prefix="encode")
        self._outcomes: dict[Owner, Future[HeatOutcome]] = {}  # outcomes of finished heats, while images are encoded
        self._canceled: set[str] = set()
        self._lock = threading.Lock()  # guards _canceled, the only thing that another thread touches

    @property
    def slots(self) -> int:
        return self.sizes.slots

    @property
    def blocks(self) -> str | None:
        return None if self.compilation is None else self.compilation.state

    @property
    def busy(self) -> bool:
        return bool(self._heats or self._outcomes)

    def room(self) -> int:
        return policy.room(self.slots, sum(work.left for work in self._heats.values()))

    def admit(self, heat: Heat) -> None:
        """Takes a heat.

        Raises:
            ValueError: it is pinned to another model or judge, has a size that the model cannot draw, or is held
                already.
        """
        self._apply_cancels()
        spec, owner = heat.job, (heat.job.id, heat.index)
        check_heat(heat, self.model_info, self.judge_info)
        if owner in self._heats or owner in self._outcomes:
            raise ValueError(f"heat {heat.index} of job {spec.id} is held already")
        if spec.sent:
            self._heats[owner] = HeatWork(heat, drawing=0, decoding=heat.count)
            return self._finishing.read(owner, heat)
        self._heats[owner] = HeatWork(heat, drawing=heat.count)
        self._waiting += (self._entry(heat, heat.candidates, draft=spec.draft is not None),)

    def _entry(self, heat: Heat, candidates: Sequence[int], *, draft: bool) -> policy.Waiting:
        """Candidates of a heat that are now to be drafted, or to be solved."""
        group = self._group(heat, draft)
        interactive = heat.job.priority == "interactive"
        return policy.Waiting((heat.job.id, heat.index), group, interactive, tuple(candidates), draft)

    def cancel(self, job: str) -> None:
        """Drops everything of this job before the next tick; any thread may call this."""
        with self._lock:
            self._canceled.add(job)

    def probe(self) -> None:
        """A moment's work on the device, waited for; raises if a GPU is lost."""
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device).item()

    def tick(self) -> list[EngineEvent]:
        """One step of denoising, and the decoding and judging that became due."""
        self._apply_cancels()
        events: list[EngineEvent] = []
        for event in self._work():
            if isinstance(event, HeatFailed):
                self._drop((event.job, event.heat))
            events.append(event)
        with self._lock:
            return [event for event in events if event.job not in self._canceled]

    def _work(self) -> Iterator[EngineEvent]:
        busy = yield from self._denoise()
        yield from self._finishing.run(idle=not busy)
        for owner, work in list(self._heats.items()):
            if work.heat.job.draft is not None and work.choose_promoted():
                # Before all heats that wait: theirs is the first in its group to be finished.
                self._waiting = (self._entry(work.heat, work.promoted, draft=False), *self._waiting)
            if work.done:
                del self._heats[owner]
                with self._side_stream.queue():
                    work.bring_home(Clock(self.device))
                self._outcomes[owner] = self._encoder.submit(self._outcome, work)
        for owner, outcome in list(self._outcomes.items()):
            if outcome.done() or not self._side_stream.late or not self._heats:
                yield _ended(owner, self._outcomes.pop(owner))

    def _outcome(self, work: HeatWork) -> HeatOutcome:
        """The outcome of a completed heat; raises SetupError if its images cannot be signed."""
        if self._signer is not None:
            self._signer = self._signer.current()
        return work.outcome(self._signer, self.model_info.pipeline)

    def _apply_cancels(self) -> None:
        with self._lock:
            canceled, self._canceled = self._canceled, set()
        for owner in [owner for owner in (*self._heats, *self._outcomes) if owner[0] in canceled]:
            self._drop(owner)

    def _drop(self, owner: Owner) -> None:
        """Forgets a heat: what waits of it and what is drawn of it, its latents and images."""
        self._heats.pop(owner, None)
        self._outcomes.pop(owner, None)
        self._waiting = tuple(heat for heat in self._waiting if heat.owner != owner)
        self._stop(owner)
        self._finishing.drop(owner)

    @abstractmethod
    def _group(self, heat: Heat, draft: bool) -> policy.Group:
        """Group of a heat's drafts or full solutions."""

    @abstractmethod
    def _denoise(self) -> Steps[Stepped | HeatFailed, None, bool]:
        """One step; returns whether there was something to denoise. Finished candidates go to `_finishing.add`."""

    @abstractmethod
    def _stop(self, owner: Owner) -> None:
        """Forgets the candidates of a heat that are being drawn."""


def check_heat(heat: Heat, model: ModelInfo, judge: JudgeInfo) -> None:
    """Check that an engine's model and judges are those of a heat, and that its size and layers can be drawn.

    Raises:
        ValueError: another revision, size or layer is asked for.
    """
    spec = heat.job
    for asked, mine in zip(spec.revisions, (model.revision, *judge.revisions), strict=True):
        if asked != mine:
            holds, asks = (f"{one.name}@{one.revision}" if one else "no second judge" for one in (mine, asked))
            raise ValueError(f"this engine holds {holds}, the heat asks for {asks}")
    if spec.sent:
        return
    multiple, depth = model.size_multiple, model.depth or 0
    if min(spec.width, spec.height) < multiple or spec.width % multiple or spec.height % multiple:
        raise ValueError(f"width and height must be multiples of {multiple}, got {spec.width}x{spec.height}")
    if wrong := [layer for layer in (spec.layers or ()) + (spec.draft_layers or ()) if not 0 <= layer < depth]:
        raise ValueError(f"layer {wrong[0]} does not exist: this engine's transformer has layers 0 to {depth - 1}")


def denoising(group: policy.Group) -> str:
    """The denoising of a group, for messages."""
    return f"denoising an image of {group.width}x{group.height} pixels"


def _ended(owner: Owner, outcome: Future[HeatOutcome]) -> HeatFinished | HeatFailed:
    """The event of a heat whose images are encoded, or cannot be signed."""
    try:
        return HeatFinished(owner[0], outcome.result())
    except SetupError as error:
        return HeatFailed(*owner, error.detail, final=True)
