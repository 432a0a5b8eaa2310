"""Heats that this worker has claimed: one record each, with a state and a table of its legal moves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from bestofn.service.core.finals import FinalsOutcome
from bestofn.service.core.jobs import HeatOutcome
from bestofn.service.core.scheduling import DeliveryAction, delivery_action
from bestofn.service.queue.claims import Claim

HeatKey = tuple[str, int]
"""A job's id and the index of a heat."""


class HeatState(StrEnum):
    """State of a claimed heat, from its claim to the queue's record of its result."""

    WAITING = "waiting"  # runs isolated, once the engine is empty
    RUNNING = "running"  # in the engine
    FINALS = "finals"  # a knockout by the pairwise judge, which needs no engine
    ENDED = "ended"  # its result is known here and not yet in the queue


MOVES: dict[HeatState, frozenset[HeatState]] = {
    HeatState.WAITING: frozenset({HeatState.RUNNING, HeatState.ENDED}),
    HeatState.RUNNING: frozenset({HeatState.ENDED}),
    HeatState.FINALS: frozenset({HeatState.ENDED}),
    HeatState.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Completed:
    """All candidates of a heat are judged."""

    outcome: HeatOutcome


@dataclass(frozen=True, slots=True)
class FinalsCompleted:
    """The finals of a job are decided, or were not played."""

    outcome: FinalsOutcome


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed. `final`: no further attempt can succeed."""

    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """The heat goes back to the queue without a spent delivery, or its job has ended."""


HeatResult = Completed | FinalsCompleted | Failed | Released


@dataclass(slots=True)
class HeldHeat:
    """One claimed heat.

    Attributes:
        claim: the last claim of it; its lease is renewed while the heat is held.
        state: see `HeatState`.
        result: set when the heat has ended.
        num_judged: verdicts on its candidates so far.
    """

    claim: Claim
    state: HeatState
    result: HeatResult | None = None
    num_judged: int = 0

    @property
    def in_engine(self) -> bool:
        """Whether the engine may hold it: an ended heat leaves the engine at its next tick only."""
        return not self.claim.heat.is_finals and self.state is not HeatState.WAITING

    def move(self, state: HeatState) -> None:
        """Enter a state. Raises ValueError if `MOVES` has no such move."""
        if state not in MOVES[self.state]:
            raise ValueError(f"heat {self.claim.key} cannot go from {self.state} to {state}")
        self.state = state


class HeldHeats:
    """Every heat of this worker between its claim and the queue's record of its result."""

    def __init__(self, max_deliveries: int) -> None:
        self._max_deliveries = max_deliveries
        self._heats: dict[HeatKey, HeldHeat] = {}

    def __len__(self) -> int:
        return len(self._heats)

    def __iter__(self) -> Iterator[HeldHeat]:
        return iter(tuple(self._heats.values()))

    def get(self, key: HeatKey) -> HeldHeat | None:
        return self._heats.get(key)

    def claims(self) -> list[Claim]:
        return [held.claim for held in self]

    def add(self, claim: Claim) -> HeldHeat:
        """Hold a heat: in the state that its deliveries and its kind ask for."""
        if claim.heat.is_finals:
            state = HeatState.FINALS
        elif self.action(claim) is DeliveryAction.RUN:
            state = HeatState.RUNNING
        else:
            state = HeatState.WAITING
        held = self._heats[claim.key] = HeldHeat(claim, state)
        return held

    def reclaimed(self, claim: Claim) -> Claim | None:
        """The claim of a heat that is held already, with its deliveries so far; None if it is not held.

        The own lease expired, for instance while the queue was away: this is not one delivery more.
        """
        held = self._heats.get(claim.key)
        if held is None:
            return None
        held.claim = replace(claim, deliveries=held.claim.deliveries)
        return held.claim

    def end(self, key: HeatKey, result: HeatResult) -> bool:
        """Note the result of a heat; False if it is not held, or had a result already."""
        held = self._heats.get(key)
        if held is None or held.state is HeatState.ENDED:
            return False
        held.move(HeatState.ENDED)
        held.result = result
        return True

    def drop(self, key: HeatKey) -> None:
        """Forget a heat whose result the queue has recorded."""
        self._heats.pop(key, None)

    def next_isolated(self) -> HeldHeat | None:
        """A heat that waits to run isolated, if the engine is empty."""
        if any(held.in_engine for held in self):
            return None
        return next((held for held in self if held.state is HeatState.WAITING), None)

    @property
    def isolation(self) -> bool:
        """Whether a heat runs isolated or waits for it: no other heat may be claimed then."""
        return any(not h.claim.heat.is_finals and self.action(h.claim) is not DeliveryAction.RUN for h in self)

    def of_job(self, job: str, *, finals: bool) -> list[HeldHeat]:
        """The finals of a job that are held, or its heats without them."""
        return [held for held in self if held.claim.entry.job == job and held.claim.heat.is_finals is finals]

    def action(self, claim: Claim) -> DeliveryAction:
        """The action that a claim's number of deliveries asks for."""
        return delivery_action(claim.deliveries, self._max_deliveries)
