"""A network namespace whose link is cut and mended: packets vanish, and nothing is reset. Needs root and iproute2."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

POSSIBLE = os.geteuid() == 0 and shutil.which("ip") is not None


class Namespace:
    """`prefix` starts a command inside; `here` and `there` are the addresses of this side and of that one."""

    def __init__(self) -> None:
        number = os.getpid()
        subnet = f"10.{200 + number % 50}.{number // 50 % 250}"  # of this process: others may have one too
        self.here, self.there = f"{subnet}.1", f"{subnet}.2"
        self.name, self._outer, self._inner = f"bestofn-{number}", f"bo{number}a"[:15], f"bo{number}b"[:15]
        self.prefix = ["ip", "netns", "exec", self.name]

    def up(self) -> None:
        """Raise CalledProcessError where namespaces are not allowed."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
        _ip("addr", "add", f"{self.here}/24", "dev", self._outer)
        _ip("link", "set", self._outer, "up")
        _ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", self._inner)
        self.link(True)

    def link(self, up: bool) -> None:
        _ip("-n", self.name, "link", "set", self._inner, "up" if up else "down")

    def limit(self, rate: str) -> None:
        """Slow both directions down to a rate such as `1mbit`. Raise CalledProcessError where the kernel cannot."""
        shape = ("root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        for side in (["tc"], ["tc", "-n", self.name]):
            device = self._outer if side == ["tc"] else self._inner
            subprocess.run([*side, "qdisc", "replace", "dev", device, *shape], check=True, capture_output=True)

    def down(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace | None]:
    """A namespace for the time of the block; None where there can be none."""
    made = Namespace()
    try:
        made.up()
    except (OSError, subprocess.CalledProcessError):
        made.down()
        yield None
        return
    try:
        yield made
    finally:
        made.down()


@contextlib.asynccontextmanager
async def forwarded(host: str, socket: Path) -> AsyncIterator[int]:
    """A port of a host's address that passes on to a Unix socket, for a server without one."""

    open_ends: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends[asyncio.current_task()] = writer
        inner_reader, inner_writer = await asyncio.open_unix_connection(socket)
        ways = [asyncio.create_task(_copy(reader, inner_writer)), asyncio.create_task(_copy(inner_reader, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for one in (writer, inner_writer):
            one.close()
        del open_ends[asyncio.current_task()]

    listening = await asyncio.start_server(serve, host, 0)
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        for writer in open_ends.values():
            writer.transport.abort()  # its reader ends, and so does the task, which streams must not see canceled
        await asyncio.gather(*filter(None, list(open_ends)))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
