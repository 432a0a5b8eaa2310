"""Policies of the queue, pure: the heat size of a job, and the action for a heat by its number of deliveries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bestofn.service.core.heat_schedule import DEFAULT_HEAT_SIZE
from bestofn.service.core.workers import WorkerInfo


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of all jobs that wait or run, and the bytes reserved for their images."""

    jobs: int = 0
    candidates: int = 0
    tflops: float = 0.0
    image_bytes: int = 0


def heat_size(num_samples: int, capacities: Sequence[int]) -> int:
    """Candidates in a heat, chosen for speed: 1 to 16, and at most those of the job.

    Every live worker gets the same number of heats, and the smallest worker a share of its own size. Large heats need
    fewer queue calls and keep fewer images. One heat too many is a tail for which the other workers wait.

    Args:
        num_samples: number of candidates of the job.
        capacities: number of candidates that each live worker holds at once; empty if no worker is live.

    Raises:
        ValueError: a number is not positive.
    """
    if num_samples < 1 or any(capacity < 1 for capacity in capacities):
        raise ValueError(f"candidates and capacities must be positive, got {num_samples} and {list(capacities)}")
    share = -(-num_samples * min(capacities) // sum(capacities)) if capacities else num_samples
    rounds = -(-share // DEFAULT_HEAT_SIZE)
    return -(-share // rounds)


class DeliveryAction(StrEnum):
    """What a worker does with a delivered heat. A heat that fails or kills its worker again and again is poison."""

    RUN = "run"
    ISOLATE = "alone"  # alone on the device, so that it cannot harm other heats
    DEAD_LETTER = "dead"


def delivery_action(deliveries: int, max_deliveries: int) -> DeliveryAction:
    """The action for delivery number `deliveries`: `max_deliveries` runs, one isolated run, then dead letter."""
    if deliveries <= max_deliveries:
        return DeliveryAction.RUN
    return DeliveryAction.ISOLATE if deliveries == max_deliveries + 1 else DeliveryAction.DEAD_LETTER


def claim_count(room: int) -> int:
    """Number of heats to claim at once for `room` more candidates, at least one."""
    return max(1, room // DEFAULT_HEAT_SIZE)


def wait_seconds(candidates: int, backlog: Backlog, workers: Iterable[WorkerInfo]) -> float | None:
    """Seconds that these workers need for `candidates` of the backlog's average work.

    None while no worker has finished a heat, so that no speed is known.
    """
    speed = sum(info.tflops_per_second or 0.0 for info in workers)
    if not speed:
        return None
    return candidates * backlog.tflops / backlog.candidates / speed if backlog.candidates else 0.0
