"""State of a heat in the engine: verdicts, images still in play, and its cost."""

import math
import time
from collections import Counter, defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from torch import Tensor

from bestofn.judge.verdict import BROKEN, Verdict
from bestofn.service.core.jobs import Candidate, Heat, HeatOutcome, Usage
from bestofn.service.core.results import leaders, promoted
from bestofn.service.core.workers import PipelineCall
from bestofn.service.engine.timing import Clock
from bestofn.service.media.codec import encode, thumbnail
from bestofn.service.media.metadata import Story
from bestofn.service.media.provenance import Signer

Owner = tuple[str, int]  # job, heat
Small = tuple[bytes, float]  # a small image, and the seconds of making it


def shrunk(image: Tensor) -> Small:
    """A small image of one on the host, (H, W, 3) uint8."""
    started = time.perf_counter()
    return thumbnail(image.numpy()), time.perf_counter() - started


@dataclass(slots=True)
class HeatWork:
    """A heat in work.

    Attributes:
        drawing: candidates whose latent is not finished, of the drafts and later of the promoted ones.
        decoding: candidates whose latent, or whose sent image, waits to be decoded.
        drafts: verdicts on drafts.
        promoted: candidates that are solved in full, once that is known.
        images: (H, W, 3) uint8 on the device, of those still in play; at the end on the host. None if they were sent.
        counts: forwards of the "transformer" and of the "judge".
        tflops, seconds: as in `Usage`.
        clocks: a stage, a clock of work that may not be done yet, and the heat's share of it.
        unsound: candidates without an image, of the drafts (True) and of the full solutions (False).
        unsafe: number of candidates that the image checker refused, of both.
        warnings: sentences for the user, each once.
    """

    heat: Heat
    drawing: int
    decoding: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    drafts: dict[int, Verdict] = field(default_factory=dict)
    promoted: tuple[int, ...] = ()
    images: dict[int, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    tflops: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    clocks: list[tuple[str, Clock, float]] = field(default_factory=list)
    unsound: dict[bool, list[int]] = field(default_factory=lambda: {False: [], True: []})
    unsafe: Counter[bool] = field(default_factory=Counter)
    warnings: dict[str, None] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.candidates) == self.heat.promoted

    @property
    def left(self) -> int:
        """Candidates that are still to be drawn and judged, once each."""
        drafts = 0 if self.heat.job.draft is None else self.heat.count - len(self.drafts)
        return drafts + self.heat.promoted - len(self.candidates)

    def choose_promoted(self) -> bool:
        """Choose the promoted candidates once the last draft has its verdict; returns whether this was the moment."""
        if self.promoted or len(self.drafts) < self.heat.count:
            return False
        self.promoted = tuple(promoted(self.heat.job, self.drafts))
        self.drawing += len(self.promoted)
        return True

    def warn(self, text: str | None) -> None:
        if text is not None:
            self.warnings[text] = None

    def judged(
        self, index: int, verdict: Verdict, pixels: Tensor, small: Future[Small] | None, draft: bool
    ) -> tuple[Candidate, bytes | None]:
        """Notes a verdict; the images of candidates that can no longer be among the best are dropped here.

        Args:
            small: thumbnail of the image, if the job asked for one.
            draft: whether it is on a draft, whose image is not kept.

        Returns:
            The candidate, and a small image of it if the job asked.
        """
        spec = self.heat.job
        if draft:
            self.drafts[index] = verdict
            candidate = self._drafted(index)
        else:
            candidate = Candidate(index, spec.seed_of(index), verdict, self.drafts.get(index))
            self.candidates.append(candidate)
            if not spec.sent:
                self.images[index] = pixels
                in_play = set(leaders(spec, self.candidates))
                self.images = {i: image for i, image in self.images.items() if i in in_play}
        if small is None:
            return candidate, None
        image, seconds = small.result()
        self.seconds["encode"] += seconds
        return candidate, image

    def _drafted(self, index: int) -> Candidate:
        verdict = self.drafts[index]
        return Candidate(index, self.heat.job.seed + index, verdict, verdict, solved_in_full=False)

    def note_unsound(self, index: int, reason: str, draft: bool) -> bool:
        """Note a candidate without an image, which ranks last; False if no draft, or no full solution, has one."""
        self.unsound[draft].append(index)
        self.warn(f"{reason} for {'the draft of ' if draft else ''}candidate {index}: it ranks last")
        return self.fruitful(draft)

    def fruitful(self, draft: bool) -> bool:
        """Whether no candidate is without an image, or another one has one; unsafe ones do not count."""
        field = (self.heat.count if draft else self.heat.promoted) - self.unsafe[draft]
        return not self.unsound[draft] or len(set(self.unsound[draft])) < field  # two judges may fail at the same one

    def no_verdict(self, draft: bool, why: Verdict) -> Verdict:
        """The verdict on a candidate that no judge is asked about; `why` is BROKEN or UNSAFE."""
        two = len(self.heat.job.judges) > 1 and not draft
        return replace(why, second=BROKEN, bound=math.nan) if two else why

    def bring_home(self, clock: Clock) -> None:
        """Start the copies of the best images to the host; they are complete when the clock has stopped."""
        with clock:
            self.images = {i: image.to("cpu", non_blocking=True) for i, image in self.images.items()}
        self.clocks.append(("encode", clock, 1.0))

    def outcome(self, signer: Signer | None, pipeline: PipelineCall | None) -> HeatOutcome:
        """The outcome of the completed heat, with its best images encoded and, with a signer, signed.

        Raises:
            SetupError: the signer's certificate has expired.
        """
        spec = self.heat.job
        for stage, clock, share in self.clocks:
            self.seconds[stage] += clock.seconds * share
        started = time.perf_counter()
        drafted = map(self._drafted, self.drafts.keys() - set(self.promoted))
        candidates = tuple(sorted([*self.candidates, *drafted], key=lambda candidate: candidate.index))
        encoded = {}
        for candidate in candidates:
            if candidate.index in self.images:
                story = Story.of(spec, candidate, pipeline, signed=signer is not None)
                image = encode(self.images[candidate.index].numpy(), spec.format, story)
                encoded[candidate.index] = image if signer is None else signer.sign(image, spec.format, story)
        if spec.sent:
            encoded = {index: self.heat.images[index] for index in leaders(spec, candidates)}
        self.seconds["encode"] += time.perf_counter() - started
        return HeatOutcome(
            heat=self.heat.index,
            candidates=candidates,
            images=encoded,
            usage=Usage(
                candidates=self.heat.count,
                transformer_forwards=self.counts["transformer"],
                judge_forwards=self.counts["judge"],
                tflops=self.tflops,
                seconds=dict(sorted(self.seconds.items())),
            ),
            warnings=tuple(self.warnings),
        )
