"""The door: floods are refused without a look, patient callers never notice, and callers do not harm each other."""

import contextlib

import pytest

from bestofn.service.api.rate_limit import CALLERS_KEPT, LOOKS, LOOKS_PER_SECOND, Door
from bestofn.service.core.errors import Overloaded

FULL = Overloaded("no room", retry_after=3.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(door: Door, caller: str, tries: int) -> int:
    """How many of so many refused tries have looked."""
    count = 0
    for _ in range(tries):
        with contextlib.suppress(Overloaded):
            door.enter(caller)
            count += 1
            door.refused(caller, FULL)
    return count


def test_a_flood_has_few_looks_and_others_have_all_of_theirs() -> None:
    clock = Clock()
    door = Door(clock)
    assert looks(door, "flood", 1000) == LOOKS
    assert looks(door, "flood", 1000) == 0
    assert looks(door, "other", 1) == 1
    clock.now += 2.0
    assert looks(door, "flood", 1000) == 2 * LOOKS_PER_SECOND


def test_who_comes_back_when_told_to_always_has_a_look() -> None:
    clock = Clock()
    door = Door(clock)
    for _ in range(100):
        assert looks(door, "patient", 5) == 5
        clock.now += 1.0


def test_what_is_accepted_costs_no_look() -> None:
    door = Door(Clock())
    looks(door, "busy", int(LOOKS) - 1)
    for _ in range(100):
        door.enter("busy")
        door.accepted("busy")
    door.enter("busy")
    with pytest.raises(Overloaded, match="no room") as refusal:
        door.enter("busy")
    assert refusal.value is FULL


def test_callers_are_forgotten_when_they_have_calmed_down_or_are_too_many() -> None:
    clock = Clock()
    door = Door(clock)
    looks(door, "calm", 3)
    clock.now += LOOKS / LOOKS_PER_SECOND
    door.enter("calm")
    assert looks(door, "calm", 1000) == LOOKS
    for number in range(CALLERS_KEPT):
        door.refused(f"caller {number}", FULL)
    assert looks(door, "calm", 1) == 1
