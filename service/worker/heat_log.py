"""Outcome of each of a worker's heats: counters, a log line and a trace span."""

import time
from typing import Literal

import structlog

from bestofn.service.core.jobs import Candidate, HeatOutcome
from bestofn.service.queue.claims import Claim
from bestofn.service.telemetry import metrics
from bestofn.service.telemetry.traces import past_span
from bestofn.service.worker.held_heats import HeldHeat, HeldHeats

# completed: stored; duplicate: another worker was first, or the job had ended; retried: failed, to be tried again;
# dead_lettered: failed for good; released: given back, or its job had ended.
HeatEnding = Literal["completed", "duplicate", "retried", "dead_lettered", "released"]

log = structlog.get_logger()


def judged(held: HeldHeat, candidate: Candidate) -> None:
    """Count a verdict on a candidate of a held heat."""
    held.num_judged += 1
    metrics.CANDIDATES.inc()
    metrics.VERDICTS.labels(candidate.verdict.answer).inc()
    if candidate.verdict.broken:
        metrics.INVALID.inc()


def log_end(
    heats: HeldHeats, claim: Claim, ending: HeatEnding, outcome: HeatOutcome | None = None, reason: str | None = None
) -> None:
    """Record the end of a heat on this worker: counters, a log line and a trace span.

    Args:
        heats: heats that the worker holds; a heat may end without having been held.
        claim: claim of the heat.
        ending: outcome of the heat.
        outcome: result of a completed heat.
        reason: reason of a failure.
    """
    seconds = time.monotonic() - claim.claimed
    held = heats.get(claim.key)
    metrics.HEATS.labels(ending).inc()
    if ending == "dead_lettered":
        metrics.DEAD.inc()
    if ending == "completed":
        metrics.HEAT_SECONDS.observe(seconds)
    else:
        metrics.WASTED.labels(ending).inc(0 if held is None else held.num_judged)
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
    error = (reason or ending) if ending in ("retried", "dead_lettered") else None
    with past_span("heat", claim.traceparent, seconds, named, error):
        write = log.info if error is None else log.warning
        write("heat", seconds=round(seconds, 3), **attributes, **({"reason": reason} if reason else {}))
