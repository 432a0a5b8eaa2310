"""A caller who takes all that it can get: idle connections, open calls, or reads of large jobs, until it is killed.

    python greedy_caller.py idle PORT KEY COUNT
    python greedy_caller.py calls PORT KEY COUNT JOB     800 event streams, then waits
    python greedy_caller.py reads PORT KEY COUNT JOB ...

Prints how many connections, calls or answers it got so far, once a second.
"""

import asyncio
import collections
import contextlib
import itertools
import sys

from bestofn.service.host.cgroups import raise_descriptor_limit

PAUSE_SECONDS = 30.0  # after a connection that was closed, or a call that was refused
OPENED_AT_ONCE = 20  # each tenth of a second
STREAMS = 800

got: "collections.Counter[str]" = collections.Counter()


async def idle(port: int, key: str, number: int, jobs: list[str]) -> None:
    """Connects and sends nothing; connects again when the server closes."""
    reader, _ = await asyncio.open_connection("127.0.0.1", port)
    got["connected"] += 1
    await reader.read()
    got["closed"] += 1
    await asyncio.sleep(PAUSE_SECONDS)


async def calls(port: int, key: str, number: int, jobs: list[str]) -> None:
    """Follows a job, or waits for its end, for as long as the server lets it."""
    stream = number < STREAMS
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = f"/jobs/{jobs[0]}/events" if stream else f"/jobs/{jobs[0]}"
    writer.write(_request(path, key, "" if stream else "Prefer: wait=120\r\n"))
    status = int((await reader.readline()).split()[1])
    got[f"{'stream' if stream else 'wait'} {status}"] += 1
    while await reader.read(65536):
        pass
    writer.close()
    if status != 200:
        await asyncio.sleep(PAUSE_SECONDS)


async def reads(port: int, key: str, number: int, jobs: list[str]) -> None:
    """Reads large jobs as fast as it can: first candidates, winners, and whole results."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    paths = [f"/jobs/{job}{page}" for job in jobs for page in ("?limit=1", "/images/1", "?limit=4096", "")]
    for path in itertools.cycle(paths[number % len(paths) :] + paths[: number % len(paths)]):
        writer.write(_request(path, key, "Connection: keep-alive\r\n"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        got[f"read {head.split()[1]}"] += 1


def _request(path: str, key: str, headers: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{headers}\r\n".encode()


async def main(kind: str, port: int, key: str, count: int, jobs: list[str]) -> None:
    work = {"idle": idle, "calls": calls, "reads": reads}[kind]
    gate = asyncio.Semaphore(OPENED_AT_ONCE)

    async def live(number: int) -> None:
        async with gate:
            await asyncio.sleep(0.1)
        while True:
            with contextlib.suppress(OSError, EOFError, IndexError):
                await work(port, key, number, jobs)

    tasks = [asyncio.create_task(live(number)) for number in range(count)]
    while True:
        await asyncio.sleep(1.0)
        print(dict(got), sum(not task.done() for task in tasks), flush=True)  # noqa: T201


if __name__ == "__main__":
    raise_descriptor_limit()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]))
