"""The queue's Lua scripts: loaded from their files, run by their hashes."""

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from bestofn.service.queue.keys import Keys

FOLDER = files("bestofn.service.queue") / "lua"
SHARED = ("common", "ring", "ending")
Argument = str | int | float | bytes


class Scripts:
    """The scripts of one namespace on one server. A server that has restarted gets each again when it is called."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis
        shared = "\n".join((keys.lua(), *((FOLDER / f"{part}.lua").read_text() for part in SHARED)))
        named = {file.name.removesuffix(".lua"): file for file in FOLDER.iterdir() if file.name.endswith(".lua")}
        self._sources = {name: _source(file, shared) for name, file in named.items() if name not in SHARED}
        self._hashes = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in self._sources.items()}

    async def __call__(self, name: str, *rest: Argument, **named: Argument) -> Any:
        """Run one script.

        Args:
            name: file name of the script.
            rest: list of arguments without names, `rest` in the script.
            named: arguments by name, `args` in the script.

        Returns:
            The script's reply, with bytes for strings.
        """
        pairs = [part for pair in named.items() for part in pair]
        arguments = (len(named), *pairs, *rest)
        try:
            return await self._redis.evalsha(self._hashes[name], 0, *arguments)
        except NoScriptError:
            return await self._redis.eval(self._sources[name], 0, *arguments)


def _source(file: Traversable, shared: str) -> str:
    """One script: its first line (the flags), what all share, the rest."""
    flags, _, body = file.read_text().partition("\n")
    return "\n".join((flags, shared, body))
