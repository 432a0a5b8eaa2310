"""Prompt contexts, encoded once per prompt and kept over jobs while they fit."""

from collections import OrderedDict
from collections.abc import Callable

from bestofn.models.linear_dit import PromptContext

MAX_BYTES = 2**30


class PromptCache:
    """The contexts used last, up to a number of bytes; the newest is kept whatever its size.

    The empty negative prompt of guidance is shared by nearly all jobs and so never grows old.
    """

    def __init__(self, encode: Callable[[str, bool], PromptContext], max_bytes: int = MAX_BYTES) -> None:
        """
        Args:
            encode: from a prompt, and whether it is the negative one, to its context.
        """
        self._encode = encode
        self._max_bytes = max_bytes
        self._contexts: OrderedDict[tuple[str, bool], PromptContext] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contexts)

    def __contains__(self, key: tuple[str, bool]) -> bool:
        return key in self._contexts

    def get(self, prompt: str, negative: bool = False) -> PromptContext:
        """The context of one prompt, encoded now if it is not kept; passes on what the encoder raises."""
        key = (prompt, negative)
        if key not in self._contexts:
            self._contexts[key] = self._encode(prompt, negative)
        self._contexts.move_to_end(key)
        while len(self._contexts) > 1 and sum(context.nbytes for context in self._contexts.values()) > self._max_bytes:
            self._contexts.popitem(last=False)
        return self._contexts[key]
