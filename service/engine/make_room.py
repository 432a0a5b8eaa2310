"""What gives way when a batch does not fit into memory even alone: first what is idle, then what is slower without."""

from collections.abc import Callable

from bestofn.models.generator import Generator
from bestofn.service.engine.microbatch import release_cache
from bestofn.service.engine.slot_groups import SlotGroups


class MakeRoom:
    """Frees memory of a device, one thing a call: idle groups, the text encoder, half of the rows of all forwards."""

    def __init__(self, generator: Generator, groups: SlotGroups) -> None:
        self._ways: tuple[Callable[[], bool], ...] = (
            lambda: groups.close_idle(0),
            lambda: generator.release("text_encoder"),  # it is read again for the next new prompt
            groups.halve_rows,
        )

    def __call__(self) -> bool:
        """Whether something was freed, so that another attempt is worth its time."""
        freed = any(way() for way in self._ways)
        if freed:
            release_cache()
        return freed
