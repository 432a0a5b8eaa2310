"""Prompt table: keys and values of the prompts in the slots, once a prompt, whatever the number of its candidates."""

import weakref
from dataclasses import dataclass

from bestofn.models.linear_dit.context import PromptContext

STEP = 8  # prompts by which the table grows


@dataclass(slots=True)
class _Entry:
    context: "weakref.ref[PromptContext]"
    rows: int = 0  # that read it


class PromptTable:
    """Buffers of prompts that forwards of all sizes and depths read by index, so that a GPU can replay them.

    A prompt is written once and stays until another needs its place, so the empty negative prompt is hardly ever
    written again. The table grows where all its prompts are in use; `buffers` are then others, and what was recorded
    with the old ones is void.
    """

    def __init__(self, context: PromptContext) -> None:
        """
        Args:
            context: of any prompt, shaped like all of them.
        """
        self.buffers = context.empty_slots(STEP)
        self._entries: dict[int, _Entry] = {}  # by place, the one used last at the end

    def take(self, context: PromptContext) -> int:
        """The place of a prompt, for one more row; `give_back` ends it.

        Raises:
            MemoryError, RuntimeError: the table has to grow, and memory does not suffice.
        """
        place = next((place for place, entry in self._entries.items() if entry.context() is context), None)
        if place is None:
            place = self._free()
            self.buffers.write(place, context)
            self._entries[place] = _Entry(weakref.ref(context))
        entry = self._entries.pop(place)
        entry.rows += 1
        self._entries[place] = entry
        return place

    def give_back(self, place: int) -> None:
        """Ends a row's use of a prompt."""
        self._entries[place].rows -= 1

    def _free(self) -> int:
        """A place that no row reads: an empty one, else that of the prompt used least recently."""
        count = len(self.buffers)
        idle = next((place for place, entry in self._entries.items() if not entry.rows), None)
        if len(self._entries) < count:
            return next(place for place in range(count) if place not in self._entries)
        if idle is not None:
            del self._entries[idle]
            return idle
        larger = self.buffers.empty_slots(count + STEP)
        for mine, old in zip((larger.keys, larger.values), (self.buffers.keys, self.buffers.values), strict=True):
            mine[:, :count].copy_(old)
        larger.bias[:count].copy_(self.buffers.bias)
        self.buffers = larger
        return count
