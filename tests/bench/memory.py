"""What a job takes of the queue's server: bytes by kind of key, and commands."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable

import redis

from bestofn.service.queue.job_queue import Queue


async def job_bytes(queue: Queue, job: str) -> dict[str, int]:
    """Bytes of each of a job's keys, by their kind: its hash, heats, events, images, ..."""
    found: Counter[str] = Counter(images=0)
    async for name in queue.redis.scan_iter(match=f"{queue.keys.namespace}:*{job}*", count=1000):
        _, kind, *rest = name.decode().split(":")
        kind = rest[1] if len(rest) > 1 else kind
        found[kind] += await queue.redis.memory_usage(name, samples=0)
    return dict(found)


async def commands(queue: Queue, work: Awaitable[object]) -> tuple[Counter[str], Counter[str]]:
    """What the server did meanwhile, as MONITOR shows it: commands of clients and commands in scripts, by name."""
    from_clients: Counter[str] = Counter()
    in_scripts: Counter[str] = Counter()
    client = redis.Redis.from_url(str(queue.settings.redis_url))
    started, done = threading.Event(), f"done {time.monotonic()}"

    def listen() -> None:
        with client.monitor() as monitor:  # type: ignore[no-untyped-call]
            started.set()
            for told in monitor.listen():
                if done in told["command"]:
                    return
                kind = in_scripts if told["client_type"] == "lua" else from_clients
                kind[told["command"].split(" ")[0].lower()] += 1

    thread = threading.Thread(target=listen)
    thread.start()
    await asyncio.to_thread(started.wait)
    try:
        await work
    finally:
        await queue.redis.echo(done)
        await asyncio.to_thread(thread.join)
        client.close()
    return from_clients, in_scripts
