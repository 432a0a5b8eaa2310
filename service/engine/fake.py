"""The sleeping engine: deterministic images and verdicts without torch, for tests, demos and queue benchmarks."""

import hashlib
import json
import math
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bestofn.judge.calibration import bounded
from bestofn.judge.verdict import Verdict
from bestofn.service.core.jobs import Candidate, Heat, HeatOutcome, Revision, Usage
from bestofn.service.core.results import leaders, promoted
from bestofn.service.core.workers import JudgeInfo, ModelInfo
from bestofn.service.engine.protocol import EngineEvent, HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.media.codec import decode, encode, thumbnail
from bestofn.service.media.metadata import Story

FAILS = "this heat fails"
DIES = "this engine dies"
HANGS = "this engine hangs"
KILLS = "this process dies"
RAMBLES = "this judge rambles"
_CRASH_STATUS = 70


@dataclass
class _Run:
    """A heat in the engine: candidates that wait for a slot, those in one with their steps, those judged."""

    heat: Heat
    waiting: deque[int]
    steps: dict[int, int] = field(default_factory=dict)
    judged: list[Candidate] = field(default_factory=list)
    drafts: dict[int, Verdict] = field(default_factory=dict)
    promoted: list[int] = field(default_factory=list)  # in jobs with drafts, once all of them are judged


class FakeEngine:
    """Sleeps `step_seconds` a tick. An image is one colour, made from its seed; a verdict hashes prompt and seed.

    The verdict on a sent image hashes prompt and file.

    Words in a prompt cause faults:
    `FAILS`: every heat fails.
    `DIES`: the tick raises, as when a device is lost.
    `HANGS`: the tick does not return for an hour.
    `KILLS`: the process exits.
    `RAMBLES`: of three verdicts one is prose and one is not finite.

    Setting `lost` loses the device while it is idle.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        step_seconds: float = 0.0,
        name: str = "fake",
        revision: str = "1",
        second_judge: bool = False,
    ) -> None:
        self.slots = slots
        self.blocks: str | None = None
        self.step_seconds = step_seconds
        self.tokenizer_files = (_tokenizer(),)
        self.model_info = ModelInfo(
            revision=Revision(name=name, revision=revision),
            width=64,
            height=64,
            max_size=1024,
            size_multiple=32,
            num_inference_steps=4,
            guidance_scale=4.5,
            token_limit=300,
            tokenizer_sha256=hashlib.sha256(self.tokenizer_files[0]).hexdigest(),
            tflops_per_forward=0.001,
            tflops_per_decode=0.001,
            depth=4,
            layer_order=(0, 3, 1, 2),
        )
        self.judge_info = JudgeInfo(
            revision=Revision(name=f"{name}-judge", revision=revision), tflops_per_forward=0.001
        )
        if second_judge:
            second = JudgeInfo(revision=Revision(name=f"{name}-second", revision=revision), tflops_per_forward=0.001)
            self.judge_info = self.judge_info.model_copy(update={"second": second})
        self.lost = threading.Event()
        self._runs: dict[tuple[str, int], _Run] = {}
        self._canceled: deque[str] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    def room(self) -> int:
        """Slots that no admitted candidate will take, and one more set of them so that none waits for the queue."""
        admitted = sum(len(run.waiting) + len(run.steps) for run in self._runs.values())
        return max(0, 2 * self.slots - admitted)

    def admit(self, heat: Heat) -> None:
        if heat.job.revisions != (self.model_info.revision, *self.judge_info.revisions):
            raise ValueError(f"heat {heat.index} is of {heat.job.revisions}, not of this engine")
        self._runs[heat.job.id, heat.index] = _Run(heat, deque(heat.candidates))

    def cancel(self, job: str) -> None:
        self._canceled.append(job)

    def probe(self) -> None:
        if self.lost.is_set():
            raise RuntimeError("the device is lost")

    def tick(self) -> list[EngineEvent]:
        while self._canceled:
            job = self._canceled.popleft()
            self._runs = {key: run for key, run in self._runs.items() if key[0] != job}
        self._fill()
        time.sleep(self.step_seconds)
        events: list[EngineEvent] = []
        for key, run in list(self._runs.items()):
            trouble = _trouble(run.heat.job.prompt)
            if trouble is not None:
                events.append(HeatFailed(*key, trouble))
                del self._runs[key]
            elif run.steps:
                events += self._advance(run)
                if len(run.judged) == run.heat.promoted:
                    seconds = run.heat.steps * self.step_seconds / self.slots
                    events.append(HeatFinished(key[0], _outcome(run, seconds)))
                    del self._runs[key]
        return events

    def _fill(self) -> None:
        free = self.slots - sum(len(run.steps) for run in self._runs.values())
        for run in self._runs.values():
            while free and run.waiting:
                run.steps[run.waiting.popleft()] = 0
                free -= 1

    def _advance(self, run: _Run) -> list[EngineEvent]:
        spec, heat = run.heat.job, run.heat.index
        events: list[EngineEvent] = []
        if not spec.sent:
            events.append(Stepped(spec.id, heat, len(run.steps), 2 * len(run.steps)))
        steps = spec.draft.num_inference_steps if spec.draft and not run.promoted else spec.num_inference_steps
        for index in list(run.steps):
            run.steps[index] += 1
            if run.steps[index] >= steps:  # a sent image takes one tick
                del run.steps[index]
                candidate = _judge(run, index)
                image = _image(run.heat, index)
                events.append(Judged(spec.id, heat, candidate, thumbnail(image) if spec.has_thumbnail(index) else None))
        if spec.draft and not run.promoted and len(run.drafts) == run.heat.count:
            run.promoted = promoted(spec, run.drafts)
            run.waiting.extend(run.promoted)
        return events


def _judge(run: _Run, index: int) -> Candidate:
    spec = run.heat.job
    seed = _seed(run.heat, index)
    if spec.draft and not run.promoted:
        run.drafts[index] = verdict = fake_verdict(spec.prompt, seed, draft=True)
        return Candidate(index, spec.seed_of(index), verdict, verdict, solved_in_full=False)
    verdict = fake_verdict(spec.prompt, seed)
    if len(spec.judges) > 1:
        other = fake_verdict(f"{spec.prompt}, says the other", seed)
        verdict = bounded(verdict, other, (spec.calibration, spec.second_calibration))
    candidate = Candidate(index, spec.seed_of(index), verdict, run.drafts.get(index))
    run.judged.append(candidate)
    return candidate


def _seed(heat: Heat, index: int) -> int:
    """What a candidate's verdict and image are made from: its seed, or the bytes of its sent image."""
    if not heat.job.sent:
        return heat.job.seed + index
    return int.from_bytes(hashlib.sha256(heat.images[index]).digest()[:6])


def _image(heat: Heat, index: int) -> Image.Image:
    if heat.job.sent:
        return decode(heat.images[index])
    return fake_image(_seed(heat, index), heat.job.width, heat.job.height)


def fake_verdict(prompt: str, seed: int, *, draft: bool = False) -> Verdict:
    """A verdict that only prompt and seed decide; about half are yes. That on a draft resembles the final one."""
    if RAMBLES in prompt and seed % 3:
        return Verdict("other", 1.0, 2.0) if seed % 3 == 1 else Verdict("yes", math.nan, math.inf)
    digest = hashlib.sha256(f"{prompt}\n{seed}".encode()).digest()
    yes, no = (20.0 * int.from_bytes(digest[at : at + 4]) / 2**32 for at in (0, 4))
    if draft:
        yes, no = (0.7 * logit + 6.0 * digest[at] / 256 for at, logit in ((8, yes), (9, no)))
    return Verdict("yes" if yes > no else "no", yes, no)


def fake_image(seed: int, width: int, height: int) -> Image.Image:
    """An image of one colour that only the seed decides."""
    red, green, blue = hashlib.sha256(str(seed).encode()).digest()[:3]
    return Image.new("RGB", (width, height), (red, green, blue))


def _outcome(run: _Run, seconds: float) -> HeatOutcome:
    spec = run.heat.job
    left = run.drafts.keys() - set(run.promoted)
    drafted = [Candidate(i, spec.seed + i, run.drafts[i], run.drafts[i], solved_in_full=False) for i in left]
    candidates = tuple(sorted([*run.judged, *drafted], key=lambda candidate: candidate.index))
    best = set(leaders(spec, candidates))
    steps, verdicts = run.heat.steps, len(run.judged) * len(spec.judges) + len(run.drafts)
    return HeatOutcome(
        run.heat.index,
        candidates,
        {
            one.index: run.heat.images.get(one.index)
            or encode(_image(run.heat, one.index), spec.format, Story.of(spec, one))
            for one in candidates
            if one.index in best
        },
        Usage(run.heat.count, 2 * steps, verdicts, 0.001 * (2 * steps + 2 * verdicts), {"denoise": seconds}),
    )


def _trouble(prompt: str) -> str | None:
    if KILLS in prompt:
        os._exit(_CRASH_STATUS)
    if DIES in prompt:
        raise RuntimeError("the device is lost")
    if HANGS in prompt:
        time.sleep(3600)
    return "the prompt asked for it" if FAILS in prompt else None


def _tokenizer() -> bytes:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True).encode()
