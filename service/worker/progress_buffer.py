"""Progress buffer: steps and verdicts of heats since their last publication, by job."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bestofn.service.core.jobs import Usage
from bestofn.service.queue.claims import HeatProgress, Judgement

_HEAT_WEIGHT = 0.2  # weight of the last heat in the average speed


def speed_after(speed: float | None, usage: Usage) -> float | None:
    """Average speed of a device in TFLOP a second (an EMA) after a heat with this usage; None: no speed yet."""
    seconds = sum(usage.seconds.values())
    if not seconds:
        return speed
    now = usage.tflops / seconds
    return now if speed is None else speed + _HEAT_WEIGHT * (now - speed)


@dataclass(slots=True)
class _Job:
    heats: dict[int, HeatProgress] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    judgements: list[Judgement] = field(default_factory=list)


class ProgressBuffer:
    """Totals of the heats in the engine, and verdicts that are not published yet."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._news = asyncio.Event()

    def step(self, job: str, heat: int, steps: int, forwards: int) -> None:
        """Count candidate steps of a heat and their forwards."""
        progress = self._of(job, heat)
        progress.steps += steps
        progress.forwards += forwards

    def judge(self, job: str, heat: int, judgement: Judgement) -> None:
        """Count a verdict."""
        self._of(job, heat).judged += not judgement.candidate.again
        self._jobs[job].judgements.append(judgement)

    async def wait(self) -> None:
        """Wait until there is something to publish."""
        await self._news.wait()
        self._news.clear()

    def jobs(self) -> list[str]:
        """Jobs with something to publish."""
        return [job for job, report in self._jobs.items() if report.changed]

    def take(self, job: str) -> tuple[list[HeatProgress], list[Judgement]]:
        """The totals of heats that have changed, and the new verdicts."""
        report = self._jobs.get(job)
        if report is None:
            return [], []
        progress, judgements = [replace(report.heats[heat]) for heat in sorted(report.changed)], report.judgements
        report.changed, report.judgements = set(), []
        return progress, judgements

    def put_back(self, job: str, progress: Sequence[HeatProgress], judgements: Sequence[Judgement]) -> None:
        """Put back what `take` returned and could not be published."""
        report = self._jobs.get(job)
        if report is not None:
            report.changed |= {part.heat for part in progress}
            report.judgements = [*judgements, *report.judgements]

    def forget(self, job: str, heat: int) -> None:
        """Drop one heat's totals; the job's with its last heat."""
        report = self._jobs.get(job)
        if report is None:
            return
        report.heats.pop(heat, None)
        report.changed.discard(heat)
        if not report.heats:
            del self._jobs[job]

    def drop(self, job: str) -> None:
        """Drop all heats of a job."""
        self._jobs.pop(job, None)

    def _of(self, job: str, heat: int) -> HeatProgress:
        report = self._jobs.setdefault(job, _Job())
        report.changed.add(heat)
        self._news.set()
        return report.heats.setdefault(heat, HeatProgress(heat))
