"""A job in this process: the engine without server and queue."""

import asyncio
import hashlib
import math
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import NamedTuple

from tokenizers import Tokenizer

from bestofn.judge.stopping import Reason
from bestofn.service.core.deployments import Deployment
from bestofn.service.core.early_stopping import enough
from bestofn.service.core.finals import FinalsOutcome, entrants
from bestofn.service.core.jobs import Candidate, HeatOutcome, JobSpec, JobStatus
from bestofn.service.core.planning import job_spec
from bestofn.service.core.results import ALL_UNSAFE, assemble, best_of, ranked, shown
from bestofn.service.core.schemas import (
    RANDOM_SEEDS,
    FinalsProgress,
    GenerateRequest,
    JobProgress,
    JobResult,
)
from bestofn.service.core.settings import Settings
from bestofn.service.engine.protocol import Engine, HeatFailed, HeatFinished, Judged, Stepped
from bestofn.service.pairwise.calls import parse_address
from bestofn.service.pairwise.finals_runner import play
from bestofn.service.pairwise.openai_judge import VisionJudge

LOOK_SECONDS = 0.05  # between looks at Ctrl-C and the deadline while finals are played


class LocalRun(NamedTuple):
    """A job that has ended; `images` are the winners' bytes, `thumbnails` small images, both by candidate."""

    result: JobResult
    images: dict[int, bytes]
    thumbnails: dict[int, bytes]


def local_spec(request: GenerateRequest, engine: Engine, settings: Settings) -> JobSpec:
    """The job that a request asks of this engine, checked as the server checks it.

    Raises:
        InvalidRequest: with the field at fault, its limit and what to change.
        SetupError: the pairwise judge of the settings is none.
    """
    pairwise_judge = parse_address(settings.pairwise_judge).model if settings.pairwise_judge else None
    tokenizers = {}
    for content in engine.tokenizer_files:
        tokenizer = Tokenizer.from_buffer(content)
        # The file may ask for cutting or padding, which would hide how long a text is.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizers[hashlib.sha256(content).hexdigest()] = tokenizer
    return job_spec(
        request.model_copy(update={"model": None, "judge": None}),
        Deployment(engine.model_info, engine.judge_info, (engine.slots,), pairwise_judge=pairwise_judge),
        settings,
        job_id=secrets.token_hex(8),
        random_seed=secrets.randbelow(RANDOM_SEEDS),
        count_tokens=lambda sha256, text: len(tokenizers[sha256].encode(text).ids),
    )


def run_local(
    spec: JobSpec,
    engine: Engine,
    on_progress: Callable[[JobResult], None] | None = None,
    judge: VisionJudge | None = None,
) -> LocalRun:
    """Runs a job to its end. Ctrl-C cancels it; a second Ctrl-C interrupts at once.

    Args:
        spec: the job, from `local_spec`.
        engine: without other work.
        on_progress: called after every tick, and before each round of the finals, with the running job, its `progress`
            filled in.
        judge: the finals' judge; closed afterwards.

    Returns:
        The job: succeeded, failed (with `error`) or canceled; images only if it succeeded.
    """
    waiting = deque(spec.heats())
    outcomes: list[HeatOutcome] = []
    in_play: list[Candidate] = []  # the best of the finished heats, best first, and their images
    stopped: Reason | None = None
    images: dict[int, bytes] = {}
    thumbnails: dict[int, bytes] = {}
    progress = JobProgress(num_samples=spec.num_samples, total_steps=spec.total_steps)
    leader: Candidate | None = None
    deadline = time.monotonic() + (spec.deadline_seconds or math.inf)
    with _interrupts() as interrupted:
        while waiting or engine.busy:
            if interrupted.is_set():
                engine.cancel(spec.id)
                engine.tick()
                return LocalRun(assemble(spec, JobStatus.CANCELED, outcomes), {}, {})
            if time.monotonic() > deadline:
                engine.cancel(spec.id)
                engine.tick()
                if not outcomes:
                    error = "its deadline passed before its first candidates were judged"
                    return LocalRun(assemble(spec, JobStatus.FAILED, (), error=error, stopped="deadline"), {}, {})
                return _succeeded(spec, outcomes, images, thumbnails, stopped="deadline")
            # A job that may stop is asked after each heat, and nothing runs ahead that it might not want.
            while waiting and engine.room() > 0 and not (spec.stop and engine.busy):
                engine.admit(waiting.popleft())
            for event in engine.tick():
                match event:
                    case HeatFailed(_, _, reason):
                        engine.cancel(spec.id)
                        engine.tick()
                        return LocalRun(assemble(spec, JobStatus.FAILED, outcomes, error=reason), {}, {})
                    case HeatFinished(_, outcome):
                        outcomes.append(replace(outcome, images={}))
                        in_play = best_of(spec, [*in_play, *outcome.candidates])
                        if spec.stop is not None:
                            stopped = enough(spec, outcome.heat + 1, in_play)
                            if stopped is not None:
                                waiting.clear()
                        images |= outcome.images
                        images = {candidate.index: images[candidate.index] for candidate in in_play}
                    case Judged(_, _, candidate, thumbnail):
                        progress.judged += not candidate.again
                        if thumbnail is not None:
                            thumbnails[candidate.index] = thumbnail
                        elif candidate.verdict.unsafe:
                            thumbnails.pop(candidate.index, None)  # its draft's
                        if leader is not None and leader.index != candidate.index:
                            candidate = ranked(spec, [leader, candidate])[0]
                        leader = candidate
                    case Stepped(_, _, steps, forwards):
                        progress.steps += steps
                        progress.transformer_forwards += forwards
            if on_progress is not None:
                progress.best = shown(spec, leader) if leader else None
                on_progress(assemble(spec, JobStatus.RUNNING, (), progress=progress.model_copy()))
        finals: FinalsOutcome | None = None
        ended: str | None = stopped
        if judge is not None and (entering := entrants(spec, in_play)):

            async def publish(state: FinalsProgress) -> None:
                if on_progress is not None:
                    progress.finals = state
                    on_progress(assemble(spec, JobStatus.RUNNING, (), progress=progress.model_copy()))

            finals = asyncio.run(_finals(judge, spec, entering, images, publish, deadline, interrupted))
            if finals is None and interrupted.is_set():
                return LocalRun(assemble(spec, JobStatus.CANCELED, outcomes), {}, {})
            ended = "deadline" if finals is None else stopped
    return _succeeded(spec, outcomes, images, thumbnails, stopped=ended, finals=finals)


def _succeeded(
    spec: JobSpec,
    outcomes: Sequence[HeatOutcome],
    images: Mapping[int, bytes],
    thumbnails: dict[int, bytes],
    *,
    stopped: str | None,
    finals: FinalsOutcome | None = None,
) -> LocalRun:
    if not images:
        failed = assemble(spec, JobStatus.FAILED, outcomes, error=ALL_UNSAFE, stopped=stopped)
        return LocalRun(failed, {}, {})
    result = assemble(spec, JobStatus.SUCCEEDED, outcomes, stopped=stopped, finals=finals)
    return LocalRun(result, {image.candidate: images[image.candidate] for image in result.images}, thumbnails)


async def _finals(
    judge: VisionJudge,
    spec: JobSpec,
    order: Sequence[Candidate],
    images: Mapping[int, bytes],
    publish: Callable[[FinalsProgress], Awaitable[None]],
    deadline: float,
    interrupted: threading.Event,
) -> FinalsOutcome | None:
    """The finals, unless Ctrl-C or the deadline comes first."""
    async with judge:
        entering = [candidate.index for candidate in order]
        playing = asyncio.create_task(play(judge, spec, entering, images, publish, own=True))
        while not (playing.done() or interrupted.is_set() or time.monotonic() > deadline):
            await asyncio.wait({playing}, timeout=LOOK_SECONDS)
        if playing.done():
            return playing.result()
        playing.cancel()
        await asyncio.wait({playing})
        return None


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the handler before it is then back. Only in the main thread."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
