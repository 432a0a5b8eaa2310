"""Policies of the queue without I/O: how a job is cut into heats, and what becomes of a heat that came back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE
from bestofn.service.core.workers import WorkerInfo


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work that waits or runs, of all jobs; and the bytes of images that stand or may come to."""

    jobs: int = 0
    candidates: int = 0
    tflops: float = 0.0
    image_bytes: int = 0


def heat_size(num_samples: int, capacities: Sequence[int]) -> int:
    """Candidates in a heat, chosen for speed: between 1 and 16, and never more than the job has.

    Each live worker should get the same number of heats and the smallest worker one share of its own size: large
    heats cost the least (one round of queueing, and pictures kept of the best `top_k` only), but one heat too many
    is a tail on which the other workers wait.

    Args:
        num_samples: candidates of the job.
        capacities: candidates that each live worker holds at once; empty if none is live.

    Raises:
        ValueError: a number is not positive.
    """
    if num_samples < 1 or any(capacity < 1 for capacity in capacities):
        raise ValueError(f"candidates and capacities must be positive, got {num_samples} and {list(capacities)}")
    share = -(-num_samples * min(capacities) // sum(capacities)) if capacities else num_samples
    rounds = -(-share // DEFAULT_HEAT_SIZE)
    return -(-share // rounds)


class DeliveryAction(StrEnum):
    """What is done with a heat that is delivered."""

    RUN = "run"
    ISOLATE = "alone"  # on a device that does nothing else, so that it can hurt nobody else
    DEAD_LETTER = "dead"


def delivery_action(deliveries: int, max_deliveries: int) -> DeliveryAction:
    """What to do on the `deliveries`-th delivery (1 is the first): `max_deliveries` in company, one alone, no more."""
    if deliveries <= max_deliveries:
        return DeliveryAction.RUN
    return DeliveryAction.ISOLATE if deliveries == max_deliveries + 1 else DeliveryAction.DEAD_LETTER


def claim_count(room: int) -> int:
    """Heats to ask for at once when `room` more candidates are wanted: at least one, and none too many."""
    return max(1, room // DEFAULT_HEAT_SIZE)


def wait_seconds(candidates: int, backlog: Backlog, workers: Iterable[WorkerInfo]) -> float | None:
    """Seconds until these live workers have done so many candidates of the average work in the backlog.

    None while none of them has finished anything by which its speed would be known.
    """
    speed = sum(info.tflops_per_second or 0.0 for info in workers)
    if not speed:
        return None
    return candidates * backlog.tflops / backlog.candidates / speed if backlog.candidates else 0.0
