"""Counting a prompt's tokens with the checkpoint's own tokenizer, which workers leave in the queue."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tokenizers import Tokenizer

KEPT = 8  # tokenizers in memory; Gemma's takes about 200 MB


class TokenCounters:
    """Tokenizers by the hash of their file, fetched once."""

    def __init__(self, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        """`fetch` returns the tokenizer.json of a hash."""
        self._fetch = fetch
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._lock = asyncio.Lock()

    async def load(self, sha256: str) -> None:
        """Make sure that `count` knows this tokenizer. Parsing a large one takes seconds: not on the event loop."""
        async with self._lock:
            if sha256 not in self._kept:
                content = await self._fetch(sha256)
                tokenizer = await asyncio.to_thread(Tokenizer.from_buffer, content)
                # The file may ask for cutting or padding, which would hide how long a text is.
                tokenizer.no_truncation()
                tokenizer.no_padding()
                self._kept[sha256] = tokenizer
            self._kept.move_to_end(sha256)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def count(self, sha256: str, text: str) -> int:
        """Tokens of `text`, control tokens included. Raises KeyError for a tokenizer that was not loaded."""
        return len(self._kept[sha256].encode(text).ids)
