"""Admission: the error for each refusal of the submission script, with its limit and the time to retry."""

from collections.abc import Sequence

from bestofn.service.core.errors import BestOfNError, IdempotencyMismatch, Overloaded, Unavailable
from bestofn.service.core.jobs import JobSpec
from bestofn.service.core.settings import Settings

BUSY_RETRY_SECONDS = 5.0  # where nothing better is known
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0


def refusal(reply: Sequence[bytes | int], spec: JobSpec, settings: Settings, speed: float) -> BestOfNError:
    """The error that a refused submission raises.

    Args:
        reply: reply of submit.lua; its first word is the reason.
        spec: the refused job.
        settings: limits of the server.
        speed: speed of all workers in TFLOP a second; 0 if it is not known.
    """
    reason, *facts = (part.decode() if isinstance(part, bytes) else part for part in reply)
    numbers = [fact for fact in facts if isinstance(fact, int)]
    match reason:
        case "mismatch":
            return IdempotencyMismatch(
                f"this Idempotency-Key was used with another request (job {facts[0]}); use a new key",
                field="Idempotency-Key",
            )
        case "unknown":
            return Unavailable(
                f"no worker has ever announced model {spec.model.name} with judge {spec.judge.name}; start one",
                retry_after=BUSY_RETRY_SECONDS,
            )
        case "memory":
            return Unavailable(f"{nearly_full(*numbers)}; try again later", retry_after=BUSY_RETRY_SECONDS)
        case "candidates" | "caller" | "work":
            held, gflop = numbers
            limits = {
                "candidates": f"{held} candidates wait, and {spec.num_samples} more would pass the limit of "
                f"{settings.max_queued_candidates}",
                "caller": f"{held} candidates of this key wait, and {spec.num_samples} more would pass its limit of "
                f"{settings.max_queued_candidates_per_key}",
                "work": f"about {held / 1000:,.0f} TFLOP of work wait, and this job would pass the limit of "
                f"{settings.max_queued_tflops or 0:,.0f}",
            }
            return Overloaded(f"{limits[reason]}; try again later", retry_after=retry_seconds(gflop / 1000, speed))
        case "images":
            held, soonest = numbers
            return Overloaded(
                f"results of other jobs hold {held >> 20} of {settings.image_budget_bytes >> 20} MiB for images; "
                "try again when some have expired, or ask for fewer or smaller images",
                retry_after=max(LEAST_RETRY_SECONDS, soonest / 1000) if soonest >= 0 else BUSY_RETRY_SECONDS,
            )
    raise AssertionError(f"submit.lua returned {reply!r}")


def nearly_full(used: int, limit: int) -> str:
    """The message for a server that uses `used` of `limit` bytes."""
    return f"the queue's memory is nearly full ({used >> 20} of {limit >> 20} MiB)"


def retry_seconds(tflops: float, speed: float) -> float:
    """Seconds until there is room, if `tflops` of work have to be done first; bounded on both sides."""
    if not speed:
        return BUSY_RETRY_SECONDS
    return min(max(tflops / speed, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS)
