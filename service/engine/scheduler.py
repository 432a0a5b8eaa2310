"""Scheduling: the candidates that enter free slots, the group of the next tick, and the groups that stay open.

Pure policy over plain values, without tensors. Slots of one resolution and depth form a group; a tick steps one group.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Size = tuple[int, int]  # width, height in pixels


class Group(NamedTuple):
    """Key of candidates in one batch: size in pixels, the layers that run (() for all), and FP8 matrix products."""

    width: int
    height: int
    layers: tuple[int, ...] = ()
    fp8: bool = False

    @property
    def size(self) -> Size:
        return self.width, self.height

    @property
    def depth(self) -> int | None:
        """Number of layers that run; None for all."""
        return len(self.layers) or None


@dataclass(frozen=True, slots=True)
class Waiting:
    """An admitted heat with candidates that have not started, next first, all to be drafted or all to be solved."""

    owner: tuple[str, int]  # job, heat
    group: Group
    interactive: bool
    candidates: tuple[int, ...]
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Candidate `candidate` of a waiting heat enters slot `slot` of the heat's group."""

    slot: int
    waiting: Waiting
    candidate: int


def refill(
    free: Mapping[Group, Sequence[int]], waiting: Sequence[Waiting]
) -> tuple[list[Placement], tuple[Waiting, ...]]:
    """Deals waiting candidates to free slots: interactive heats before batch heats, else first come, first served.

    Args:
        free: each group's free slots; a group that is not named has none.
        waiting: the admitted heats in order of admission.

    Returns:
        The placements, and the heats that still wait, in order of admission.
    """
    slots = {group: list(reversed(numbers)) for group, numbers in free.items()}
    left = list(waiting)
    placements: list[Placement] = []
    for i in sorted(range(len(left)), key=lambda i: not left[i].interactive):  # stable: admission order within a class
        heat = left[i]
        open_slots = slots.get(heat.group, [])
        taken = min(len(open_slots), len(heat.candidates))
        placements += [Placement(open_slots.pop(), heat, candidate) for candidate in heat.candidates[:taken]]
        left[i] = replace(heat, candidates=heat.candidates[taken:])
    return placements, tuple(heat for heat in left if heat.candidates)


def next_batch(waiting: Sequence[Waiting], size: Callable[[Group], int]) -> tuple[Waiting | None, tuple[Waiting, ...]]:
    """The next batch of an engine that draws one heat at a time: interactive heats before batch heats, in order.

    Args:
        waiting: the admitted heats in order of admission.
        size: most candidates of a batch of a group.

    Returns:
        The heat with the candidates of the batch, None if no heat waits, and the heats that still wait.
    """
    if not waiting:
        return None, ()
    first = min(range(len(waiting)), key=lambda i: not waiting[i].interactive)
    heat, most = waiting[first], size(waiting[first].group)
    later = (replace(heat, candidates=heat.candidates[most:]),) if heat.candidates[most:] else ()
    return replace(heat, candidates=heat.candidates[:most]), (*waiting[:first], *later, *waiting[first + 1 :])


def turn(busy: Mapping[Group, bool], last: Group | None) -> Group:
    """The group that is stepped next: groups with interactive candidates before others, and in turn among equals.

    Args:
        busy: the groups with a busy slot, and whether one of their candidates is interactive.
        last: the group that was stepped last.

    Raises:
        ValueError: no group is busy.
    """
    if not busy:
        raise ValueError("no group has a busy slot")
    first = any(busy.values())
    equals = sorted(group for group, interactive in busy.items() if interactive == first)
    return next((group for group in equals if last is not None and group > last), equals[0])


def to_close(used: Sequence[Group], busy: Collection[Group], always: Collection[Group], kept: int) -> list[Group]:
    """The idle groups that are closed: all but `always` and the `kept` that were used last, in order of last use.

    Args:
        used: the open groups, the one used last at the end.
        busy: those with an occupant.
    """
    idle = [group for group in used if group not in busy and group not in always]
    return idle[: max(0, len(idle) - kept)]


def room(slots: int, held: int) -> int:
    """Number of candidates to admit while `held` are unfinished: a second set waits behind the running one.

    With more, other workers would idle and canceled jobs linger. With fewer, slots would be empty between heats.
    """
    return max(0, 2 * slots - held)


def split_due(waiting: Sequence[Item], size: int, *, flush: bool) -> tuple[list[Item], list[Item]]:
    """Split the waiting items of a stage into full batches of `size`, or everything with `flush`, and the rest.

    Returns:
        Items to run now and items that wait, each in order.
    """
    due = len(waiting) if flush else len(waiting) // size * size
    return list(waiting[:due]), list(waiting[due:])
