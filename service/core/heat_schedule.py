"""Heat schedule: how a job's candidates are cut into heats, and of which size. common.lua has the schedule too.

A heat is the unit of queueing, leasing and retrying.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

DEFAULT_HEAT_SIZE = 16
FIRST_HEATS = (4, 4, 8)
"""First heats of a job that may stop: the stopping rule is asked after few candidates."""
FIRST_DRAFTED_HEATS = (8, 8)
"""The same with drafts: enough of them that the best are worth a full solution."""


@dataclass(frozen=True, slots=True)
class HeatSchedule:
    """The heats of one job.

    Attributes:
        num_samples: number of candidates of the job.
        heat_size: number of candidates of a heat after the first ones.
        may_stop: whether the job may stop early, so that its first heats are smaller.
        keep: share of a heat's drafts that is solved in full, at least one; None: no drafts.
    """

    num_samples: int
    heat_size: int = DEFAULT_HEAT_SIZE
    may_stop: bool = False
    keep: float | None = None

    @property
    def first_heats(self) -> tuple[int, ...]:
        """Candidates of each of the first heats, where these are smaller."""
        return (FIRST_HEATS if self.keep is None else FIRST_DRAFTED_HEATS) if self.may_stop else ()

    @property
    def num_heats(self) -> int:
        return next(heat for heat in count() if self.first(heat) >= self.num_samples)

    @property
    def num_promoted(self) -> int:
        """Candidates of all heats that are solved in full: those that can win."""
        return sum(self.promoted(self.size(heat)) for heat in range(self.num_heats))

    def first(self, heat: int) -> int:
        """Index of the first candidate of a heat, at most `num_samples`."""
        small = self.first_heats[:heat]
        return min(sum(small) + (heat - len(small)) * self.heat_size, self.num_samples)

    def size(self, heat: int) -> int:
        """Candidates of a heat."""
        return self.first(heat + 1) - self.first(heat)

    def promoted(self, count: int) -> int:
        """How many of a heat's `count` candidates are solved in full."""
        return count if self.keep is None else max(1, math.ceil(round(self.keep * count, 9)))


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
