"""Policies of the queue, pure: the action for a heat by its number of deliveries, heats to claim, and waits."""

from collections.abc import Iterable
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
