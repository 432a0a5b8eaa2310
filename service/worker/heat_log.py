"""Outcome of each of a worker's heats: counters, a log line and a trace span."""

import time
from collections import Counter
from typing import Literal

import structlog

from bestofn.service.core.jobs import Candidate, HeatOutcome
from bestofn.service.queue.claims import Claim
from bestofn.service.telemetry import worker_metrics as metrics
from bestofn.service.telemetry.traces import past_span

# completed: stored; duplicate: another worker was first, or the job had ended; retried: failed, to be tried again;
# dead_lettered: failed for good; released: given back, or its job had ended.
HeatEnding = Literal["completed", "duplicate", "retried", "dead_lettered", "released"]
_ERRORS = ("retried", "dead_lettered")

log = structlog.get_logger()


class HeatLog:
    """Counts the judged candidates of each held heat."""

    def __init__(self) -> None:
        self._judged: Counter[tuple[str, int]] = Counter()

    def judged(self, job: str, heat: int, candidate: Candidate) -> None:
        """Count a verdict."""
        self._judged[job, heat] += 1
        metrics.CANDIDATES.inc()
        metrics.VERDICTS.labels(candidate.verdict.answer).inc()
        if candidate.verdict.broken:
            metrics.INVALID.inc()

    def ended(
        self, claim: Claim, ending: HeatEnding, outcome: HeatOutcome | None = None, reason: str | None = None
    ) -> None:
        """Record the end of a heat on this worker.

        Args:
            claim: claim of the heat.
            ending: outcome of the heat.
            outcome: result of a completed heat.
            reason: reason of a failure.
        """
        seconds = time.monotonic() - claim.claimed
        judged = self._judged.pop(claim.key, 0)
        metrics.HEATS.labels(ending).inc()
        if ending == "dead_lettered":
            metrics.DEAD.inc()
        if ending == "completed":
            metrics.HEAT_SECONDS.observe(seconds)
        else:
            metrics.WASTED.labels(ending).inc(judged)
        attributes: dict[str, str | int | float] = {
            "job_id": claim.entry.job,
            "heat": claim.entry.heat,
            "candidates": claim.entry.count,
            "deliveries": claim.deliveries,
            "outcome": ending,
            "waited_seconds": round(claim.waited_seconds, 3),
        }
        if outcome is not None:
            metrics.TFLOPS.inc(outcome.usage.tflops)
            attributes["tflops"] = round(outcome.usage.tflops, 3)
            for stage, spent in outcome.usage.seconds.items():
                metrics.STAGE_SECONDS.labels(stage).inc(spent)
                attributes[f"{stage}_seconds"] = round(spent, 4)
        named = {f"bestofn.{name}": value for name, value in attributes.items()}
        with past_span(
            "heat",
            claim.traceparent,
            seconds,
            named,
            (reason or ending) if ending in _ERRORS else None,
        ):
            write = log.warning if ending in _ERRORS else log.info
            write("heat", seconds=round(seconds, 3), **attributes, **({"reason": reason} if reason else {}))
