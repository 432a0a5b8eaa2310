"""What heats have come to since it was last published, kept per job until somebody takes it."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from bestofn.service.jobs import Candidate
from bestofn.service.queue.lane import HeatProgress


@dataclass
class _Job:
    steps: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # heat -> steps since its start
    judged: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    changed: set[int] = field(default_factory=set)
    candidates: list[Candidate] = field(default_factory=list)


class Reports:
    """Totals of the heats in the engine, and the verdicts nobody has published yet."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._news = asyncio.Event()

    def step(self, job: str, heat: int, steps: int) -> None:
        """Counts candidate-steps of a heat."""
        report = self._of(job, heat)
        report.steps[heat] += steps

    def judge(self, job: str, heat: int, candidate: Candidate) -> None:
        """Counts a verdict."""
        report = self._of(job, heat)
        report.judged[heat] += 1
        report.candidates.append(candidate)

    async def wait(self) -> None:
        """Returns when something is to be published."""
        await self._news.wait()
        self._news.clear()

    def jobs(self) -> list[str]:
        """Jobs with something to publish."""
        return [job for job, report in self._jobs.items() if report.changed]

    def take(self, job: str) -> tuple[list[HeatProgress], list[Candidate]]:
        """The totals of heats that have changed, and the new verdicts."""
        report = self._jobs.get(job)
        if report is None:
            return [], []
        progress = [HeatProgress(heat, report.judged[heat], report.steps[heat]) for heat in sorted(report.changed)]
        candidates = report.candidates
        report.changed, report.candidates = set(), []
        return progress, candidates

    def forget(self, job: str, heat: int) -> None:
        """Drops one heat's totals; the job's when it was the last."""
        report = self._jobs.get(job)
        if report is None:
            return
        report.steps.pop(heat, None)
        report.judged.pop(heat, None)
        report.changed.discard(heat)
        if not report.steps and not report.judged:
            del self._jobs[job]

    def drop(self, job: str) -> None:
        """Drops all heats of a job."""
        self._jobs.pop(job, None)

    def _of(self, job: str, heat: int) -> _Job:
        report = self._jobs.setdefault(job, _Job())
        report.changed.add(heat)
        self._news.set()
        return report
