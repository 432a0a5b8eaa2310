"""Prompts of an engine: contexts, encoded once a prompt, and the table of those that slots read."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.telemetry.metrics import PROMPT_HITS, PROMPT_MISSES

MAX_BYTES = 2**30  # that all contexts may take together
STEP = 8  # prompts by which the table grows

Prompt = tuple[str, bool]  # the text, and whether it is the negative prompt


class PromptCache:
    """The contexts used last, up to a number of bytes; those of one call are kept whatever their size.

    The empty negative prompt of guidance is shared by nearly all jobs and so never grows old.
    """

    def __init__(self, encode: Callable[[Sequence[Prompt]], list[PromptContext]]) -> None:
        """
        Args:
            encode: gives the contexts of prompts, one each.
        """
        self._encode = encode
        self._contexts: OrderedDict[Prompt, PromptContext] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those prompts that would have to be encoded, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._contexts]

    def get(self, prompts: Sequence[Prompt]) -> list[PromptContext]:
        """The contexts of prompts in order, encoded now where they are not kept; passes on what the encoder raises."""
        missing = self.missing(prompts)
        PROMPT_MISSES.inc(len(missing))
        PROMPT_HITS.inc(len(prompts) - len(missing))
        if missing:
            self._contexts.update(zip(missing, self._encode(missing), strict=True))
        found = [self._contexts[prompt] for prompt in prompts]
        for prompt in prompts:
            self._contexts.move_to_end(prompt)
        held = sum(context.nbytes for context in self._contexts.values())
        while held > MAX_BYTES and len(self._contexts) > len(set(prompts)):
            held -= self._contexts.popitem(last=False)[1].nbytes
        return found


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
            context: keys and values of any prompt, shaped like all of them.
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
