"""Prompt contexts, encoded once per prompt and kept over jobs while they fit."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from bestofn.models.linear_dit.context import PromptContext
from bestofn.service.telemetry.worker_metrics import PROMPT_HITS, PROMPT_MISSES

MAX_BYTES = 2**30

Prompt = tuple[str, bool]  # the text, and whether it is the negative prompt


class PromptCache:
    """The contexts used last, up to a number of bytes; those of one call are kept whatever their size.

    The empty negative prompt of guidance is shared by nearly all jobs and so never grows old.
    """

    def __init__(self, encode: Callable[[Sequence[Prompt]], list[PromptContext]], max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            encode: gives the contexts of prompts, one each.
            max_bytes: that all contexts may take together.
        """
        self._encode = encode
        self._max_bytes = max_bytes
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
        while held > self._max_bytes and len(self._contexts) > len(set(prompts)):
            held -= self._contexts.popitem(last=False)[1].nbytes
        return found
