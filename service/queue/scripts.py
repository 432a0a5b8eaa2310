"""The queue's Lua scripts: loaded from their files, run by their hashes."""

import hashlib
from importlib.resources import files
from typing import Any, Literal, get_args

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from bestofn.service.queue.keys import Keys

Script = Literal[
    "submit",
    "start",
    "heartbeat",
    "report",
    "complete",
    "publish_finals",
    "complete_finals",
    "give_back",
    "cancel",
    "expire",
    "orphans",
    "set_deliveries",
    "refuse",
    "read_changes",
    "probe",
    "claim_webhooks",
    "settle_webhook",
]
SCRIPTS: tuple[Script, ...] = get_args(Script)
SHARED = ("common", "ring", "ending")
Argument = str | int | float | bytes


class Scripts:
    """The scripts of one namespace on one server. A server that has restarted gets each again when it is called."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis
        self._sources = {name: _source(name, keys) for name in SCRIPTS}
        self._hashes = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in self._sources.items()}

    async def __call__(self, name: Script, *rest: Argument, **named: Argument) -> Any:
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


def _source(name: Script, keys: Keys) -> str:
    """One script: its first line (the flags), the keys, what all share, the rest."""
    folder = files("bestofn.service.queue") / "lua"
    flags, _, body = folder.joinpath(f"{name}.lua").read_text().partition("\n")
    shared = (folder.joinpath(f"{part}.lua").read_text() for part in SHARED)
    return "\n".join((flags, keys.lua(), *shared, body))
